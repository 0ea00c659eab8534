"""What live margins cost a training step against margins that came with the dataset.

A scorer on a core of its own answers 50 ms late; the trainer's core runs a real step of a policy of the same size. Both
ways take the same pairs in the same order, and the scorer keeps no scores.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from bench import models
from bench.meters import conditions
from bench.scoring.pairs import make_pairs
from bench.scoring.replicas import TOKEN, publish_model, replicas
from madpo.data.order import Schedule
from madpo.data.tokenize import encode_response
from madpo.jobs.methods import MarginParameters
from madpo.models.load import load_tokenizer
from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.logps import PackedLogps
from madpo.rpc.reward_client import RewardClient
from madpo.storage.local import LocalStore
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.remote import RemoteMargins
from madpo_trainer.margins.source import DatasetMargins, MarginSource

BETA = 0.1


class LateClient(RewardClient):
    """The scorer from far away."""

    late_s = 0.0

    async def score_pairs(self, *arguments: Any, **options: Any) -> Any:
        """As of the reward client, later."""
        await asyncio.sleep(self.late_s)
        return await super().score_pairs(*arguments, **options)


class Policy:
    """A random policy that takes DPO steps with the margins as offsets."""

    def __init__(self, tokenizer: Any, pairs: Sequence[Any]) -> None:
        self.model = models.causal_lm(models.SIZES["body"], seed=1)
        prepare_layout(self.model, needs_head=True)
        self.logps = PackedLogps()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.groups = []
        for pair in pairs:
            chosen, rejected = (encode_response(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected))
            self.groups.append(ResponseGroup(chosen.prompt_ids, (chosen.response_ids, rejected.response_ids)))

    def step(self, rows: Sequence[int], margins: Sequence[float | None]) -> None:
        logps = self.logps(self.model, [self.groups[row] for row in rows]).logps
        offsets = torch.tensor([margin or 0.0 for margin in margins])
        loss = -logsigmoid(BETA * (logps[0::2] - logps[1::2]) - offsets).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def train(policy: Policy, source: MarginSource, schedule: Schedule) -> dict[str, Any]:
    """Seconds of each step, and of its wait for margins; CPU-seconds of the process from the second step on."""
    steps, waits = [], []
    source.start(0)
    cpu = time.process_time()
    for step in range(schedule.total_steps):
        if step == 1:
            cpu = time.process_time()
        start = time.perf_counter()
        margins = source.take(step)
        waits.append(time.perf_counter() - start)
        policy.step(schedule.batch(step), margins)
        steps.append(time.perf_counter() - start)
    cpu_s = time.process_time() - cpu
    source.close()
    return {"step_s": steps, "wait_s": waits, "cpu_s": cpu_s, "summary": source.summary()}


def measure(root: Path, pairs: Sequence[Any], *, batch: int, rounds: int, late_s: float) -> dict[str, list[Any]]:
    store_url, model_id = publish_model(root)
    policy = Policy(load_tokenizer(root / "model"), pairs)
    schedule = Schedule.plan(rows=len(pairs), batch_size=batch, seed=0, epochs=1, max_steps=None)
    known = [dataclasses.replace(pair, reward_margin=0.0) for pair in pairs]
    numbers: Iterator[int] = iter(range(1_000_000))
    cores = sorted(os.sched_getaffinity(0))
    LateClient.late_s = late_s

    with replicas(root, store_url, model_id, cores=[cores[-1]]) as (replica,):
        target = f"127.0.0.1:{replica.port}"

        async def revision() -> str:
            async with RewardClient(target, token=TOKEN) as client:
                return (await client.get_reward_model(model_id)).revision

        pinned = asyncio.run(revision())

        def live() -> MarginSource:
            return RemoteMargins(
                pairs,
                schedule,
                connect=lambda: LateClient(target, token=TOKEN, timeout_s=600),
                model_id=model_id,
                revision=pinned,
                journal=MarginJournal(LocalStore(root / "journals"), job_id=f"job-{next(numbers):032}", attempt=1),
                parameters=MarginParameters.model_validate({"reward_model": {"model_id": model_id}}),
                interrupted=lambda: False,
            )

        def came_with_them() -> MarginSource:
            margins = np.array([pair.reward_margin for pair in known], dtype=np.float64)
            return DatasetMargins(margins, np.arange(1, len(known) + 1), schedule)

        os.sched_setaffinity(0, {cores[0]})
        policy.step(schedule.batch(0), [0.0] * batch)
        results: dict[str, list[Any]] = {"precomputed": [], "live": []}
        for _ in range(rounds):
            results["precomputed"].append(train(policy, came_with_them(), schedule))
            results["live"].append(train(policy, live(), schedule))
        os.sched_setaffinity(0, cores)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = make_pairs(arguments.pairs, seed=3)
    with tempfile.TemporaryDirectory() as directory:
        results = measure(
            Path(directory),
            pairs,
            batch=arguments.batch,
            rounds=arguments.rounds,
            late_s=arguments.latency_ms / 1000,
        )
    extra, waits, firsts = [], [], []
    for precomputed, live in zip(results["precomputed"], results["live"], strict=True):
        extra.append(live["cpu_s"] / precomputed["cpu_s"] - 1)
        waits.append(sum(live["wait_s"][1:]) / sum(live["step_s"][1:]))
        firsts.append(live["wait_s"][0])
        step_s, live_s = (statistics.median(way["step_s"]) for way in (precomputed, live))
        print(
            f"step {step_s:.2f} s precomputed, {live_s:.2f} s live; CPU {extra[-1]:+.1%}; waited {waits[-1]:.2%} of the"
            f" time after the first step, {firsts[-1]:.2f} s for the first"
        )
    print(f"median: CPU {statistics.median(extra):+.1%}, wait {statistics.median(waits):.2%} of step time")
    print("JSON " + json.dumps({"results": results, **conditions()}))


if __name__ == "__main__":
    main()
