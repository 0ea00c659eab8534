"""Sampling: our engines beside plain `generate`, on the same prompts, in turns in one process.

    python -m bench.sampling.run --result bench/results/sampling.json
    python -m bench.sampling.run --ways transformers generate vllm      # in an environment that has vLLM

`generate` takes batches of 64 prompts as they come, as evaluation scripts do; `sorted` the same by length; `continuous`
is transformers' continuous batching. Responses end with any of several tokens, so that their lengths are drawn (mean 64
at most), and differ between ways: rates are tokens that were kept, over CPU-seconds.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.lengths import SHAPES, draw_lengths, fill
from bench.meters import conditions, machine, measure
from bench.rounds import spread
from madpo.jobs.sampling import SamplingParameters
from madpo.sampling.engine import SamplingEngine
from madpo.sampling.transformers import TransformersEngine
from madpo.sampling.vllm import VllmEngine, engine_arguments, load_engine

_ROWS = 64
_MEAN_TOKENS = 64
WAYS = ("transformers", "generate", "sorted", "continuous", "vllm")


@dataclass(frozen=True, slots=True)
class Work:
    """What every way is given."""

    size: str
    prompts: list[list[int]]
    sampling: SamplingParameters
    model: Any
    tokenizer: Any
    ends: list[int]

    @classmethod
    def of(cls, size: str, *, prompts: int, samples: int, new_tokens: int) -> "Work":
        """Seeded prompts and a random model."""
        shape = models.SIZES[size]
        drawn = fill(draw_lengths(SHAPES["128/128"], prompts, seed=3), shape.vocabulary, seed=3)
        model = models.causal_lm(shape).eval()
        ends = list(range(4, 4 + shape.vocabulary // _MEAN_TOKENS))
        model.generation_config.eos_token_id = ends
        sampling = SamplingParameters(samples_per_prompt=samples, max_new_tokens=new_tokens)
        return cls(size, [pair.prompt for pair in drawn], sampling, model, models.tokenizer(shape.vocabulary), ends)


Way = Callable[[], int]
"""Draws all responses; tokens that were kept."""


def of_engine(engine: SamplingEngine, work: Work) -> Way:
    """One of our engines."""
    return lambda: sum(len(ids) for ids in drawn_by(engine, work, temperature=1.0))


def drawn_by(engine: SamplingEngine, work: Work, *, temperature: float) -> list[list[int]]:
    """Token ids of all responses, by prompt and sample."""
    turns = engine.sample(work.prompts, work.sampling, temperature=temperature)
    responses = sorted((each for turn in turns for each in turn), key=lambda each: (each.prompt_index, each.sample))
    return [each.encoded.response_ids for each in responses]


def plain(work: Work, *, by_length: bool) -> Way:
    """Transformers' `generate`, batch by batch."""
    rows = [ids for ids in work.prompts for _ in range(work.sampling.samples_per_prompt)]
    if by_length:
        rows = sorted(rows, key=len)

    @torch.inference_mode()
    def draw() -> int:
        work.model.set_attn_implementation("sdpa")
        kept = 0
        for start in range(0, len(rows), _ROWS):
            batch = rows[start : start + _ROWS]
            width = max(map(len, batch))
            input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in batch])
            attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch])
            output = work.model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=work.sampling.max_new_tokens,
                pad_token_id=0,
            )
            kept += sum(kept_tokens(ids, work.ends) for ids in output[:, width:].tolist())
        return kept

    return draw


def continuous(work: Work) -> Way:
    """Transformers' continuous batching."""
    from transformers import GenerationConfig

    rows = [ids for ids in work.prompts for _ in range(work.sampling.samples_per_prompt)]
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=work.sampling.max_new_tokens,
        eos_token_id=work.ends,
        pad_token_id=0,
    )

    def draw() -> int:
        work.model.set_attn_implementation("sdpa")
        outputs = work.model.generate_batch(inputs=rows, generation_config=config, progress_bar=False)
        assert len(outputs) == len(rows), "a request was lost"
        return sum(kept_tokens(list(each.generated_tokens), work.ends) for each in outputs.values())

    return draw


def kept_tokens(ids: Sequence[int], ends: Sequence[int]) -> int:
    """Up to the first token that ends the response."""
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def vllm_engine(work: Work, directory: Path) -> VllmEngine:
    """Our vLLM engine over the same weights."""
    work.model.save_pretrained(directory)
    longest = max(map(len, work.prompts)) + work.sampling.max_new_tokens
    arguments = engine_arguments(
        directory,
        precision="fp32",
        max_tokens=longest,
        memory_share=0.5,
        on_gpu=False,
        options={"max_num_seqs": _ROWS},
    )
    engine, parameters = load_engine(arguments)
    return VllmEngine(engine, work.tokenizer, ends=work.ends, parameters=parameters)


def agreement(ours: SamplingEngine, other: SamplingEngine, work: Work) -> dict[str, Any]:
    """How the engines' texts compare: greedy ones with each other, drawn ones with those of another company."""
    greedy = [drawn_by(engine, work, temperature=0.0) for engine in (ours, other)]
    drawn = drawn_by(other, work, temperature=1.0)
    samples = work.sampling.samples_per_prompt
    few = Work(work.size, work.prompts[:3], work.sampling, work.model, work.tokenizer, work.ends)
    in_little_company = drawn_by(other, few, temperature=1.0)
    return {
        "responses": len(drawn),
        "greedy_equal": sum(a == b for a, b in zip(*greedy, strict=True)),
        "redrawn_equal": sum(a == b for a, b in zip(drawn, drawn_by(other, work, temperature=1.0), strict=True)),
        "in_little_company_equal": sum(a == b for a, b in zip(drawn, in_little_company, strict=False)),
        "in_little_company": 3 * samples,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:-1]))
    parser.add_argument("--size", choices=models.SIZES, default="body")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work = Work.of(asked.size, prompts=asked.prompts, samples=asked.samples, new_tokens=asked.new_tokens)
    engines: dict[str, SamplingEngine] = {"transformers": TransformersEngine(work.model, work.tokenizer, rows=_ROWS)}
    scratch = tempfile.TemporaryDirectory()
    if "vllm" in asked.ways:
        engines["vllm"] = vllm_engine(work, Path(scratch.name))
    ways: dict[str, Way] = {
        "generate": plain(work, by_length=False),
        "sorted": plain(work, by_length=True),
        "continuous": continuous(work),
        **{name: of_engine(engine, work) for name, engine in engines.items()},
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in asked.ways}
    before = conditions()
    for number in range(asked.rounds):
        for name in asked.ways:
            kept: list[int] = []
            sample = measure(lambda name=name, kept=kept: kept.append(ways[name]()))
            rounds[name].append(sample | {"tokens": kept[0], "tokens_per_cpu_s": kept[0] / sample["cpu_s"]})
            print(
                f"round {number + 1}, {name}: {rounds[name][-1]['tokens_per_cpu_s']:.1f} tokens per CPU-s", flush=True
            )
    first, *others = asked.ways
    ratios = {
        name: str(
            spread(
                [
                    a["tokens_per_cpu_s"] / b["tokens_per_cpu_s"]
                    for a, b in zip(rounds[first], rounds[name], strict=True)
                ]
            )
        )
        for name in others
    }
    result = {
        "machine": machine(),
        "before": before,
        "after": conditions(),
        "asked": {name: value for name, value in vars(asked).items() if name != "result"},
        "rounds": rounds,
        f"{first}_over": ratios,
    }
    if "vllm" in asked.ways:
        result["agreement"] = agreement(engines["transformers"], engines["vllm"], work)
    scratch.cleanup()
    print(json.dumps(ratios, indent=2), result.get("agreement", ""))
    if asked.result:
        asked.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
