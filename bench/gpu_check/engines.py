"""The scorer and the sampling of responses, each beside plain transformers on the same texts."""

import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification

from bench import models
from bench.gpu_check.check import Check, Figures, Setting, forget_peak, peak_gib, require, synchronize
from bench.gpu_check.training import make_model
from bench.lengths import SHAPES, draw_lengths, fill
from madpo.data.collate import collate_responses
from madpo.data.tokenize import Encoded
from madpo.jobs.sampling import SamplingParameters
from madpo.models.scores import reward_scores
from madpo.sampling.transformers import TransformersEngine
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
    """Tokens/s of the engine and of plain `generate` with 64 prompts."""
    count, new_tokens = (64, _NEW_TOKENS) if setting.is_cuda else (4, 8)
    forget_peak(setting.device)
    model = make_model(setting).to(torch.bfloat16 if setting.is_cuda else torch.float32).eval()
    tokenizer = models.tokenizer(setting.size.vocabulary)
    prompts = [
        pair.prompt[:64]
        for pair in fill(draw_lengths(SHAPES[setting.shape], count, seed=2), setting.size.vocabulary, seed=2)
    ]
    engine = TransformersEngine(model, tokenizer, rows=count)
    sampling = SamplingParameters(samples_per_prompt=1, max_new_tokens=new_tokens, temperatures=(1.0,), seed=0)
    drawn = 0

    def ours() -> None:
        nonlocal drawn
        drawn = sum(
            len(each.encoded.response_ids)
            for batch in engine.sample(prompts, sampling, temperature=1.0)
            for each in batch
        )

    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(setting.device)

    def plain() -> None:
        model.generate(**padded, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=True, pad_token_id=0)

    ours_s, plain_s = _seconds(ours, setting), _seconds(plain, setting)
    figures = {
        "tokens_per_s": round(drawn / ours_s),
        "plain_tokens_per_s": round(count * new_tokens / plain_s),
        "peak_gib": peak_gib(setting.device),
    }
    require(drawn > 0, "no token was drawn", figures)
    return figures


CHECKS = (
    Check("scorer", scorer, 180),
    Check("generation", generation, 120),
)
