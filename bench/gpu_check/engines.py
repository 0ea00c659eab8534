"""The scorer and the sampling of responses, each beside plain transformers on the same texts."""

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForSequenceClassification

from bench import models
from bench.gpu_check.check import Check, Figures, Setting, forget_peak, peak_gib, require, synchronize
from bench.gpu_check.training import make_model
from bench.lengths import SHAPES, draw_lengths, fill
from madpo.data.collate import collate_responses
from madpo.data.tokenize import Encoded
from madpo.jobs.sampling import SamplingParameters
from madpo.models.scores import reward_scores
from madpo.sampling.engine import SamplingEngine
from madpo.sampling.responses import end_ids
from madpo.sampling.transformers import TransformersEngine
from madpo.sampling.vllm import VllmEngine, engine_arguments, load_engine
from madpo.types import PreferencePair
from madpo_reward.encoding import Text
from madpo_reward.scorer import Scorer, ScorerConfig, _batches, load_scorer

_PADDED_ROWS = 32
_NEW_TOKENS = 128


def scorer(setting: Setting) -> Figures:
    """It proves itself, in bf16 and fp32; pairs/s by how many wait, and of sorted padded batches."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        _save_reward_model(setting, directory)
        for dtype in ("bf16", "fp32"):
            forget_peak(setting.device)
            loaded = load_scorer("model-" + "1" * 32, directory, base_directory=None, config=ScorerConfig(dtype=dtype))
            most = (1, 8, 64, 256) if setting.is_cuda else (1, 4)
            texts = _texts(setting, most[-1])
            rates = {waiting: round(_rate(loaded, texts, waiting, setting), 2) for waiting in most}
            padded = round(_padded_rate(loaded, texts, setting), 2)
            figures[dtype] = {"layout": loaded.layout.name, "pairs_per_s": rates, "padded_pairs_per_s": padded}
            figures[dtype] |= {"over_padded": round(rates[most[-1]] / padded, 3), "peak_gib": peak_gib(setting.device)}
            loaded.close()
            del loaded
            gc.collect()
    if setting.is_cuda:
        slow = [dtype for dtype, each in figures.items() if each["over_padded"] < 1.0]
        require(not slow, f"slower than sorted padded batches in {', '.join(slow)}", figures)
    return figures


def _save_reward_model(setting: Setting, directory: Path) -> None:
    torch.manual_seed(0)
    config = models.config(setting.size, num_labels=1)
    with setting.device:
        model = LlamaForSequenceClassification(config)
    model.to(torch.bfloat16 if setting.is_cuda else torch.float32).save_pretrained(directory)
    models.tokenizer(setting.size.vocabulary).save_pretrained(directory)


def _texts(setting: Setting, count: int) -> list[PreferencePair]:
    drawn = fill(draw_lengths(SHAPES[setting.shape], count, seed=1), setting.size.vocabulary, seed=1)
    return [PreferencePair(models.text(p) + " ", models.text(c), models.text(r)) for p, c, r in drawn]


def _rate(loaded: Scorer, pairs: Sequence[PreferencePair], waiting: int, setting: Setting) -> float:
    """Pairs per second with so many at once, tokenizing left out."""
    asked = pairs[:waiting]
    texts = [Text("a text", pair.prompt, text) for pair in asked for text in (pair.chosen, pair.rejected)]
    plan = [
        unit
        for first in range(0, len(texts), 64)
        for unit in loaded.plan(loaded.encode_texts(texts[first : first + 64]))
    ]

    def work() -> None:
        for batch in _batches(plan):
            loaded.forward(batch)

    return waiting / _seconds(work, setting)


def _padded_rate(loaded: Scorer, pairs: Sequence[PreferencePair], setting: Setting) -> float:
    tokenizer, model = loaded._tokenizer, loaded._model
    ids = [tokenizer(f"{pair.prompt}{text}").input_ids for pair in pairs for text in (pair.chosen, pair.rejected)]
    rows = sorted((Encoded(each[:1], each[1:]) for each in ids), key=lambda row: len(row.response_ids))

    @torch.inference_mode()
    def work() -> None:
        for first in range(0, len(rows), _PADDED_ROWS):
            batch = collate_responses(rows[first : first + _PADDED_ROWS], pad_id=0).to(setting.device)
            reward_scores(model, batch.input_ids, batch.attention_mask).cpu()

    return len(pairs) / _seconds(work, setting)


def _seconds(work: Any, setting: Setting) -> float:
    """Of the second time."""
    for _ in range(2):
        synchronize(setting.device)
        start = time.perf_counter()
        work()
        synchronize(setting.device)
    return time.perf_counter() - start


def generation(setting: Setting) -> Figures:
    """Tokens/s of our engines, of plain `generate` and of continuous batching, by how many responses are asked for."""
    model = make_model(setting).to(torch.bfloat16 if setting.is_cuda else torch.float32).eval()
    tokenizer = models.tokenizer(setting.size.vocabulary)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ways = _ways(model, tokenizer, Path(scratch), new_tokens=_NEW_TOKENS if setting.is_cuda else 8)
        for count in (64, 256) if setting.is_cuda else (4,):
            drawn = fill(draw_lengths(SHAPES[setting.shape], count, seed=2), setting.size.vocabulary, seed=2)
            prompts = [pair.prompt[:64] for pair in drawn]
            figures[str(count)] = {"slots": _token_rate(ways["slots"], prompts, setting)}
            figures[str(count)] |= {
                name: _rate_of_peer(draw, prompts, setting) for name, draw in ways.items() if name != "slots"
            }
    first = next(iter(figures.values()))
    figures["peak_gib"] = peak_gib(setting.device)
    if isinstance(first["generate"], int):
        figures["over_generate"] = round(first["slots"] / first["generate"], 3)
    require(first["slots"] > 0, "no token was drawn", figures)
    return figures


_Draw = Callable[[list[list[int]]], int]
"""Answers prompts; the tokens that it drew."""


def _ways(model: Any, tokenizer: Any, scratch: Path, *, new_tokens: int) -> dict[str, _Draw]:
    """Each draws to the limit of tokens, but for responses that end before."""
    sampling = SamplingParameters(max_new_tokens=new_tokens)

    def of(engine: SamplingEngine) -> _Draw:
        return lambda prompts: sum(
            len(each.encoded.response_ids)
            for turn in engine.sample(prompts, sampling, temperature=1.0)
            for each in turn
        )

    def plain(prompts: list[list[int]]) -> int:
        model.set_attn_implementation("sdpa")
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        fixed = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return int(model.generate(**padded, **fixed, do_sample=True, top_k=0, pad_token_id=0)[:, -new_tokens:].numel())

    def continuous(prompts: list[list[int]]) -> int:
        model.set_attn_implementation("sdpa")
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)
        outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        return sum(len(each.generated_tokens) for each in outputs.values())

    ways = {"slots": of(TransformersEngine(model, tokenizer)), "generate": plain}
    is_cuda = model.device.type == "cuda"
    if is_cuda:
        ways["continuous"] = continuous
    if is_cuda and find_spec("vllm"):
        model.save_pretrained(scratch)
        arguments = engine_arguments(
            scratch, precision="bf16", max_tokens=64 + new_tokens, memory_share=0.4, on_gpu=True, options={}
        )
        engine, parameters = load_engine(arguments)
        ends = end_ids(tokenizer, model.generation_config.eos_token_id)
        ways["vllm"] = of(VllmEngine(engine, tokenizer, ends=ends, parameters=parameters))
    return ways


def _token_rate(draw: _Draw, prompts: list[list[int]], setting: Setting) -> int:
    """Tokens per second."""
    drawn: list[int] = []
    seconds = _seconds(lambda: drawn.append(draw(prompts)), setting)
    return round(drawn[-1] / seconds)


def _rate_of_peer(draw: _Draw, prompts: list[list[int]], setting: Setting) -> int | str:
    """Tokens per second; or why there is no figure: what fails there is no fault of ours."""
    try:
        return _token_rate(draw, prompts, setting)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


CHECKS = (
    Check("scorer", scorer, 180),
    Check("generation", generation, 240),
)
