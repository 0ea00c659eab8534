"""What a pair costs a client of the reward service, by pairs a message: all scores are known, only the way is paid."""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.meters import conditions
from bench.scoring.pairs import make_pairs
from bench.scoring.replicas import TOKEN, Replica, publish_model, replicas
from madpo.rpc.reward_client import RewardClient

WAYS = {"1 pair a message, 64 in flight": (1, 64), "32 pairs a message, 2 in flight": (32, 2)}


async def call(
    client: Any, model_id: str, pairs: Sequence[Any], *, size: int, in_flight: int, seconds: float
) -> dict[str, float]:
    """Ask for messages of `size` pairs for some seconds: pairs a second, CPU of this process a pair, latencies."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    start, cpu = time.perf_counter(), time.process_time()

    async def caller(first: int) -> None:
        place = first * size
        while time.perf_counter() < end:
            place = place % (len(pairs) - size + 1)
            sent = time.perf_counter()
            await client.score_pairs(model_id, pairs[place : place + size])
            latencies.append(time.perf_counter() - sent)
            place += size

    await asyncio.gather(*(caller(number) for number in range(in_flight)))
    scored = len(latencies) * size
    latencies.sort()
    return {
        "pairs": scored,
        "pairs_per_s": scored / (time.perf_counter() - start),
        "client_cpu_us_per_pair": (time.process_time() - cpu) / scored * 1e6,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


async def measure(replica: Replica, model_id: str, *, pairs: Sequence[Any], rounds: int, seconds: float) -> Any:
    results: dict[str, list[Any]] = {way: [] for way in WAYS}
    async with RewardClient(f"127.0.0.1:{replica.port}", token=TOKEN, timeout_s=600) as client:
        await client.get_reward_model(model_id)
        await client.score_pairs(model_id, pairs)
        for _ in range(rounds):
            for way, (size, in_flight) in WAYS.items():
                cpu_s = replica.cpu_s()
                sample = await call(client, model_id, pairs, size=size, in_flight=in_flight, seconds=seconds)
                sample["server_cpu_us_per_pair"] = (replica.cpu_s() - cpu_s) / sample["pairs"] * 1e6
                results[way].append(sample)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    # 2 kB a pair: about 128 tokens of four characters in the prompt, the same in both responses.
    pairs = make_pairs(256, prompt=110, response=110)
    size = sum(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs) / len(pairs)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store_url, model_id = publish_model(root, "tiny")
        with replicas(root, store_url, model_id, cores=[None], cache_entries=10_000) as (replica,):
            results = asyncio.run(
                measure(replica, model_id, pairs=pairs, rounds=arguments.rounds, seconds=arguments.seconds)
            )
    for way, samples in results.items():
        for sample in samples:
            print(way, {key: round(value, 1) for key, value in sample.items()})
    print("JSON " + json.dumps({"bytes_per_pair": size, "ways": results, **conditions()}))


if __name__ == "__main__":
    main()
