"""Scoring pairs: layouts against padded batches in one process, then the service against the same engine in process.

All run on one torch thread. Both engine and service score with cold caches; the service runs on a core of its own.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.meters import conditions
from bench.scoring.pairs import make_pairs
from bench.scoring.replicas import TOKEN, publish_model, replicas
from bench.scoring.task import PACKED, PADDED
from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.logps import packed_scores
from madpo.rpc.reward_client import RewardClient
from madpo_reward.encoding import Tokens
from madpo_reward.layouts import Layout, PaddedRows, SharedPrompts, WholeTexts
from madpo_reward.scorer import DTYPES, Scorer, ScorerConfig, load_scorer

BATCH = 32


def texts_of(scorer: Scorer, pairs: Sequence[Any]) -> list[Tokens]:
    return [scorer.encode(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]


@torch.inference_mode()
def score_padded(model: Any, texts: Sequence[Tokens]) -> list[float]:
    """What a plain loop does: batches in the order of arrival, padded to their longest."""
    rewards: list[float] = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        width = max(map(len, batch))
        input_ids = torch.tensor([[*text.ids, *[0] * (width - len(text))] for text in batch])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in batch])
        rewards += model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
    return rewards


def score_in(layout: Layout, texts: Sequence[Tokens]) -> list[float]:
    units = layout.plan(texts)
    rewards = [0.0] * len(texts)
    for unit in units:
        for place, reward in zip(unit.places, layout.forward([unit])[0], strict=True):
            rewards[place] = reward
    return rewards


@torch.inference_mode()
def score_packed(model: Any, groups: Sequence[ResponseGroup]) -> list[float]:
    """The trainer's layout: several pairs in one row, without padding."""
    rows = [groups[first : first + 8] for first in range(0, len(groups), 8)]
    return [reward for row in rows for reward in packed_scores(model, row).tolist()]


def measure_layouts(root: Path, pairs: Sequence[Any], *, dtype: str, rounds: int) -> dict[str, Any]:
    """CPU- and wall seconds per round and way, and the largest difference from texts scored alone."""
    scorer = load_scorer("bench", root / "model", base_directory=None, config=ScorerConfig(dtype=dtype))
    model = scorer._model
    texts = texts_of(scorer, pairs)
    layouts: list[Layout] = [WholeTexts(model, max_tokens=8192), SharedPrompts(model, max_tokens=8192)]
    ladder = PaddedRows(model, pad_id=0, max_width=4096, batch_positions=512)
    ways: dict[str, Callable[[], list[float]]] = {
        PADDED: lambda: score_padded(model, texts),
        "fixed shapes of 512 positions": lambda: score_in(ladder, texts),
        "each text whole, unpadded": lambda: score_in(layouts[0], texts),
        "shared prompts": lambda: score_in(layouts[1], texts),
    }
    prepared = load_scorer("bench", root / "model", base_directory=None, config=ScorerConfig(dtype=dtype))._model
    prepare_layout(prepared, needs_head=False)
    groups = [
        ResponseGroup(chosen.prompt, (chosen.response, rejected.response))
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True)
    ]
    ways[PACKED] = lambda: score_packed(prepared, groups)
    alone = ways["each text whole, unpadded"]()
    samples: dict[str, dict[str, Any]] = {way: {"cpu_s": [], "wall_s": []} for way in ways}
    for _ in range(rounds):
        for way, score in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            rewards = score()
            samples[way]["cpu_s"].append(time.process_time() - cpu)
            samples[way]["wall_s"].append(time.perf_counter() - wall)
            samples[way]["max_difference"] = max(abs(a - b) for a, b in zip(rewards, alone, strict=True))
    return samples


async def measure_beside_engine(root: Path, pairs: Sequence[Any], *, rounds: int, store_url: str, model_id: str) -> Any:
    """Engine in this process and service in its own, alternately, both on core 0; the client has the other cores."""
    cores = os.sched_getaffinity(0)
    scorer = load_scorer(model_id, root / "model", base_directory=None, config=ScorerConfig())
    ways: dict[str, dict[str, list[float]]] = {}

    def note(way: str, cpu_s: float, wall_s: float) -> None:
        sample = ways.setdefault(way, {"cpu_s": [], "wall_s": []})
        sample["cpu_s"].append(cpu_s)
        sample["wall_s"].append(wall_s)

    with replicas(root, store_url, model_id, cores=[min(cores)]) as (replica,):
        async with RewardClient(f"127.0.0.1:{replica.port}", token=TOKEN, timeout_s=1200) as client:
            await client.get_reward_model(model_id)
            for number in range(rounds + 1):
                os.sched_setaffinity(0, {min(cores)})
                wall, cpu = time.perf_counter(), time.process_time()
                expected = score_in(scorer.layout, texts_of(scorer, pairs))
                engine = time.process_time() - cpu, time.perf_counter() - wall
                os.sched_setaffinity(0, cores - {min(cores)} or cores)
                timings = {"engine": engine}
                for way, size in {"service, 1 pair a message": 1, "service, 32 pairs a message": 32}.items():
                    wall, cpu = time.perf_counter(), replica.cpu_s()
                    messages = [pairs[first : first + size] for first in range(0, len(pairs), size)]
                    replies = await asyncio.gather(*(client.score_pairs(model_id, message) for message in messages))
                    timings[way] = replica.cpu_s() - cpu, time.perf_counter() - wall
                    scored = [score for reply in replies for score in reply]
                    rewards = [reward for score in scored for reward in (score.chosen_reward, score.rejected_reward)]
                    assert rewards == expected, "the service must give the engine's bits"
                if number:  # the first round warms up
                    for way, (cpu_s, wall_s) in timings.items():
                        note(way, cpu_s, wall_s)
    os.sched_setaffinity(0, cores)
    return ways


def report(title: str, samples: dict[str, Any], *, pairs: int, baseline: str, key: str) -> None:
    """Ratios per round over the baseline, medians and ranges."""
    print(title)
    for way, sample in samples.items():
        ratios = {
            clock: [base / own for base, own in zip(samples[baseline][clock], sample[clock], strict=True)]
            for clock in ("cpu_s", "wall_s")
        }
        median = {clock: statistics.median(values) for clock, values in ratios.items()}
        low, high = min(ratios[key]), max(ratios[key])
        print(
            f"  {way:40s} {pairs / statistics.median(sample['cpu_s']):7.2f} pairs/CPU-s  x{median['cpu_s']:.2f} CPU"
            f" ({low:.2f} to {high:.2f})  x{median['wall_s']:.2f} wall  "
            + (f"difference {sample['max_difference']:.1e}" if "max_difference" in sample else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128, help="median tokens")
    parser.add_argument("--response", type=int, default=128, help="median tokens")
    parser.add_argument("--size", choices=models.SIZES, default="body")
    parser.add_argument("--only", choices=["layouts", "service"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = make_pairs(arguments.pairs, seed=5, prompt=arguments.prompt, response=arguments.response)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store_url, model_id = publish_model(root, arguments.size)
        if arguments.only != "service":
            for dtype in DTYPES:
                samples = measure_layouts(root, pairs, dtype=dtype, rounds=arguments.rounds)
                results[dtype] = samples
                report(f"layouts, {dtype}", samples, pairs=len(pairs), baseline=PADDED, key="cpu_s")
        if arguments.only != "layouts":
            samples = asyncio.run(
                measure_beside_engine(root, pairs, rounds=arguments.rounds, store_url=store_url, model_id=model_id)
            )
            results["service"] = samples
            report("service", samples, pairs=len(pairs), baseline="engine", key="cpu_s")
    print("JSON " + json.dumps({"pairs": len(pairs), "samples": results, **conditions()}))


if __name__ == "__main__":
    main()
