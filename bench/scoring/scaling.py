"""Two scorer replicas against one, each on a core of its own, under a load that keeps both busy."""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.meters import conditions
from bench.scoring.pairs import make_pairs
from bench.scoring.replicas import TOKEN, Replica, publish_model, replicas
from madpo.rpc.reward_client import RewardClient

SCORED = 'madpo_reward_pairs_total{outcome="scored"}'


async def load(serving: Sequence[Replica], model_id: str, pairs: Sequence[Any], *, message: int) -> dict[str, Any]:
    """Score all pairs once, 64 in flight: seconds, CPU-seconds and pairs of each replica."""
    cpu = [replica.cpu_s() for replica in serving]
    scored = [replica.count(SCORED) for replica in serving]
    target = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in serving)
    gate = asyncio.Semaphore(64 // message)
    async with RewardClient(target, token=TOKEN, timeout_s=1200) as client:
        await client.get_reward_model(model_id)
        await asyncio.sleep(0.5)  # every replica is connected by now

        async def send(batch: Sequence[Any]) -> None:
            async with gate:
                await client.score_pairs(model_id, batch)

        start = time.perf_counter()
        await asyncio.gather(*(send(pairs[first : first + message]) for first in range(0, len(pairs), message)))
        wall_s = time.perf_counter() - start
    return {
        "wall_s": wall_s,
        "cpu_s": [replica.cpu_s() - before for replica, before in zip(serving, cpu, strict=True)],
        "pairs": [replica.count(SCORED) - before for replica, before in zip(serving, scored, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--message", type=int, default=8, help="pairs a message")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    pairs = make_pairs(arguments.pairs, seed=7)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store_url, model_id = publish_model(root)
        with replicas(root, store_url, model_id, cores=cores) as both:
            for _ in range(arguments.rounds):
                one, two = (
                    asyncio.run(load(serving, model_id, pairs, message=arguments.message))
                    for serving in (both[:1], both)
                )
                rounds.append({"1": one, "2": two})
                print(
                    f"x{one['wall_s'] / two['wall_s']:.2f} wall, x{sum(one['cpu_s']) / max(two['cpu_s']):.2f} by"
                    f" CPU-seconds of the busier replica; pairs {two['pairs']}, CPU-seconds {one['cpu_s']} and"
                    f" {two['cpu_s']}, load {os.getloadavg()[0]:.0f}",
                    flush=True,
                )
    walls = [sample["1"]["wall_s"] / sample["2"]["wall_s"] for sample in rounds]
    cpus = [sum(sample["1"]["cpu_s"]) / max(sample["2"]["cpu_s"]) for sample in rounds]
    print(f"median x{statistics.median(walls):.2f} wall, x{statistics.median(cpus):.2f} CPU")
    print("JSON " + json.dumps({"message": arguments.message, "rounds": rounds, **conditions()}))


if __name__ == "__main__":
    main()
