"""The reward service beyond its capacity: python -m bench.scoring.overload [--size tiny] [--seconds 4].

Capacity is what a few callers get who wait for each answer; it is measured before each load and after the last, and
each load is compared with the two around it, since the machine may be shared. Open: requests come at a multiple of
capacity whatever becomes of them, and whoever is refused does not come again. Closed: so many clients, each with one
request at a time, that come again as they are told. No score is kept, so that every answer costs a forward pass.

Who sends the load is busy with it: a call costs it more CPU than a refusal costs the service. So how long refusals
take is also measured by a bystander, a process with one call at a time.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench.meters import conditions
from bench.scoring.bystander import Bystander
from bench.scoring.pairs import make_pairs
from bench.scoring.replicas import TOKEN, Replica, publish_model, replicas
from madpo.errors import MadpoError
from madpo.rpc.channel import call_metadata
from madpo.rpc.convert import pair_to_proto
from madpo.rpc.reward_client import RewardClient
from madpo.types import PreferencePair
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub

CAPACITY_CALLERS = 3
OPEN_LOADS = (1, 2, 5, 10)
CLOSED_CLIENTS = (2, 20, 80, 500)
DEADLINE_S = 10.0
QUEUE_S = 1.0


@dataclass
class Outcomes:
    """What became of the requests of one load, and after how long."""

    scored_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    hinted: int = 0
    other: dict[str, int] = field(default_factory=dict)

    def as_json(self, seconds: float) -> dict[str, Any]:
        return {
            "scored_per_s": len(self.scored_s) / seconds,
            "scored_p50_s": quantile(self.scored_s, 0.5),
            "scored_p99_s": quantile(self.scored_s, 0.99),
            "refused": len(self.refused_s),
            "refused_p50_s": quantile(self.refused_s, 0.5),
            "refused_p99_s": quantile(self.refused_s, 0.99),
            "refused_with_hint": self.hinted,
            "other": self.other,
        }


def quantile(values: Sequence[float], share: float) -> float | None:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else None


class Load:
    """Requests of a few pairs each, of one model."""

    def __init__(self, replica: Replica, model_id: str, pairs: Sequence[PreferencePair], size: int) -> None:
        self.target = f"127.0.0.1:{replica.port}"
        self.model_id = model_id
        self.batches = [pairs[start : start + size] for start in range(0, len(pairs) - size + 1, size)]
        self.requests = [
            reward.ScorePairsRequest(model_id=model_id, pairs=map(pair_to_proto, batch)) for batch in self.batches
        ]

    async def ask(self, stub: Any, number: int, outcomes: Outcomes) -> None:
        """One request, once."""
        sent = time.perf_counter()
        try:
            request = self.requests[number % len(self.requests)]
            await stub.ScorePairs(request, timeout=DEADLINE_S, metadata=call_metadata(TOKEN))
            outcomes.scored_s.append(time.perf_counter() - sent)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                outcomes.refused_s.append(time.perf_counter() - sent)
                trailers: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[call-overload]
                outcomes.hinted += int(trailers.get("grpc-retry-pushback-ms", -1)) > 0
            else:
                outcomes.other[error.code().name] = outcomes.other.get(error.code().name, 0) + 1

    async def capacity(self, seconds: float) -> dict[str, Any]:
        """What a few callers get who come again at once."""
        outcomes = Outcomes()
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]

            async def call(number: int) -> None:
                await self.ask(stub, number, outcomes)

            took_s = await _callers(call, CAPACITY_CALLERS, seconds)
        return outcomes.as_json(took_s)

    async def open(self, per_s: float, seconds: float) -> dict[str, Any]:
        """Requests at a rate; those of the first second fill the queue and are not counted."""
        warm, counted = Outcomes(), Outcomes()
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
            draw = random.Random(5)
            start = due = time.perf_counter()
            calls, number = [], 0
            while due < start + 1 + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                outcomes = warm if due < start + 1 else counted
                calls.append(asyncio.create_task(self.ask(stub, number, outcomes)))
                number += 1
                due += draw.expovariate(per_s)
            await asyncio.wait(calls)
        # As many seconds of requests as of answers: the queue is as long at the end of both.
        return counted.as_json(seconds)

    async def closed(self, clients: int, seconds: float) -> dict[str, Any]:
        """Clients that wait for their answer, and come again when they are told to."""
        outcomes = Outcomes()
        scorers = [RewardClient(self.target, token=TOKEN, timeout_s=60) for _ in range(clients)]

        async def call(number: int) -> None:
            sent = time.perf_counter()
            try:
                batch = self.batches[number % len(self.batches)]
                await scorers[number % clients].score_pairs(self.model_id, batch)
                outcomes.scored_s.append(time.perf_counter() - sent)
            except MadpoError as error:
                kind = type(error).__name__
                outcomes.other[kind] = outcomes.other.get(kind, 0) + 1

        try:
            took_s = await _callers(call, clients, seconds)
        finally:
            for scorer in scorers:
                await scorer.close()
        return outcomes.as_json(took_s)

    async def recovery(self, calm_p99_s: float) -> float:
        """Seconds until a lone caller is answered in at most twice the time it takes in calm."""
        start = time.perf_counter()
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
            while time.perf_counter() < start + 60:
                outcomes = Outcomes()
                await self.ask(stub, 0, outcomes)
                if outcomes.scored_s and outcomes.scored_s[0] <= 2 * calm_p99_s:
                    return time.perf_counter() - start
                await asyncio.sleep(0.02)
        raise TimeoutError("the service does not recover")


async def _callers(call: Callable[[int], Awaitable[None]], callers: int, seconds: float) -> float:
    """Run callers side by side, each again and again; how long it took until the last was answered."""
    start = time.perf_counter()

    async def again(number: int) -> None:
        while time.perf_counter() < start + seconds:
            await call(number)
            number += callers

    await asyncio.gather(*(again(number) for number in range(callers)))
    return time.perf_counter() - start


async def measure(load: Load, replica: Replica, bystander: Bystander, *, seconds: float) -> dict[str, Any]:
    async def metered(figures: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        cpu_s, own_s, start = replica.cpu_s(), time.process_time(), time.perf_counter()
        bystander.begin()
        value = await figures
        took_s = time.perf_counter() - start
        value |= {
            "server_cores": (replica.cpu_s() - cpu_s) / took_s,
            "load_cores": (time.process_time() - own_s) / took_s,
        }
        for code, latencies in (await asyncio.to_thread(bystander.end)).items():
            value |= {
                f"bystander_{code.lower()}": len(latencies),
                f"bystander_{code.lower()}_p50_s": quantile(latencies, 0.5),
                f"bystander_{code.lower()}_p99_s": quantile(latencies, 0.99),
            }
        return value

    await load.capacity(2.0)
    calm = [await metered(load.capacity(seconds))]
    loads: list[tuple[str, dict[str, Any]]] = []
    for times in OPEN_LOADS:
        per_s = times * calm[-1]["scored_per_s"]
        figures = await metered(load.open(per_s, seconds)) | {"asked_per_s": per_s}
        figures["recovery_s"] = await load.recovery(calm[-1]["scored_p99_s"])
        loads.append((f"open, {times} x capacity", figures))
        calm.append(await metered(load.capacity(seconds)))
    for clients in CLOSED_CLIENTS:
        loads.append((f"closed, {clients} clients", await metered(load.closed(clients, seconds))))
        calm.append(await metered(load.capacity(seconds)))
    for place, (_, figures) in enumerate(loads):
        around = statistics.mean(sample["scored_per_s"] for sample in calm[place : place + 2])
        figures["of_capacity"] = figures["scored_per_s"] / around
    return {"capacity": calm, "loads": dict(loads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=1, help="of one request")
    arguments = parser.parse_args()
    pairs = make_pairs(256, prompt=24, response=24)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store_url, model_id = publish_model(root, arguments.size)
        with replicas(root, store_url, model_id, cores=[None], max_queue_s=QUEUE_S) as (replica,):
            load = Load(replica, model_id, pairs, arguments.pairs)
            bystander = Bystander(load.target, model_id, TOKEN)
            results = asyncio.run(measure(load, replica, bystander, seconds=arguments.seconds))
            bystander.close()
            results["peak_rss_bytes"] = replica.peak_rss_bytes()
    for name, figures in results["loads"].items():
        print(name, {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()})
    print("JSON " + json.dumps({**results, "max_queue_s": QUEUE_S, **conditions()}))


if __name__ == "__main__":
    main()
