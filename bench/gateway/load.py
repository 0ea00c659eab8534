"""A gateway under load: how long normal calls take beside thousands of watches, and beside uploads.

Calls come at a fixed rate, whether or not those before have been answered. Watches and uploads come from processes of
their own; what the gateway holds is read from the system.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.meters import conditions, process_cpu_s, process_rss_bytes
from madpo.errors import MadpoError
from madpo.queue.queue import connect
from madpo.rpc.channel import call_metadata
from madpo.rpc.gateway.client import GatewayClient
from madpo.types import JobKind, JobProgress
from madpo.v1 import job_service_pb2 as pb
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo_client.embedded import EmbeddedStack
from madpo_client.embedded.plan import read_secret

CALLS_PER_S = 20.0
EVENTS_PER_S = 10.0
_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8}


async def prober(target: str, token: str, job_id: str, span_s: float) -> dict[str, float]:
    """Calls of three kinds for a while: their quantiles in ms, and how many failed."""
    latencies_ms: list[float] = []
    failed = 0
    async with GatewayClient(target, token=token, timeout_s=30) as client:
        kinds = (lambda: client.get_job(job_id), lambda: client.list_jobs(page_size=20), client.list_models)

        async def call(number: int) -> None:
            nonlocal failed
            start = time.perf_counter()
            try:
                await kinds[number % len(kinds)]()
                latencies_ms.append((time.perf_counter() - start) * 1e3)
            except MadpoError:
                failed += 1

        await call(0)
        latencies_ms.clear()
        calls = []
        for number in range(int(span_s * CALLS_PER_S)):
            calls.append(asyncio.create_task(call(number)))
            await asyncio.sleep(1 / CALLS_PER_S)
        await asyncio.gather(*calls)
    cuts = statistics.quantiles(latencies_ms, n=100) if len(latencies_ms) > 1 else [0.0] * 99
    return {"calls": len(latencies_ms), "failed": failed, "p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}


async def watchers(target: str, token: str, job_ids: Sequence[str], count: int, channels: int) -> None:
    """Watch until standard input ends; prints how many watches have begun, then what they have seen."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    opened = [grpc.aio.insecure_channel(target, options=options) for _ in range(channels)]
    seen, failures = [0] * count, dict[str, int]()
    begun = asyncio.Semaphore(0)

    async def watch(number: int) -> None:
        stub = JobServiceStub(opened[number % channels])  # type: ignore[no-untyped-call]
        cursor = ""
        while True:
            request = pb.WatchJobRequest(job_id=job_ids[number % len(job_ids)], cursor=cursor)
            try:
                async for response in stub.WatchJob(request, metadata=call_metadata(token)):
                    seen[number] += 1
                    cursor = response.event.cursor
                    if seen[number] == 1:
                        begun.release()
            except grpc.aio.AioRpcError as error:
                # A connection whose age is over as the call begins; every client of ours tries again.
                failures[error.code().name] = failures.get(error.code().name, 0) + 1
                await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(watch(number)) for number in range(count)]
    for _ in tasks:
        await begun.acquire()
    print(json.dumps({"begun": count, "failures": failures}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"least": min(seen), "most": max(seen), "failures": failures}), flush=True)
    for task in tasks:
        task.cancel()


async def uploads(target: str, token: str, count: int, size_bytes: int, directory: Path) -> None:
    """Upload files of random rows, so many at a time, until standard input ends; prints how many were stored."""
    stored, failures = 0, dict[str, int]()
    draw = random.Random(0)
    body = bytearray()
    while len(body) < size_bytes:
        row = {"prompt": f"{draw.random()} " * 50, "chosen": "yes", "rejected": "no"}
        body += json.dumps(row).encode() + b"\n"
    async with GatewayClient(target, token=token, timeout_s=60) as client:

        async def upload(number: int) -> None:
            nonlocal stored
            path = directory / f"{number}.jsonl"
            for again in range(10**9):
                own = {"prompt": f"{number} {again}", "chosen": "yes", "rejected": "no"}
                await asyncio.to_thread(path.write_bytes, json.dumps(own).encode() + b"\n" + body)
                try:
                    await client.upload_dataset([path], display_name=path.name)
                    stored += 1
                except MadpoError as error:
                    failures[type(error).__name__] = failures.get(type(error).__name__, 0) + 1

        tasks = [asyncio.create_task(upload(number)) for number in range(count)]
        print(json.dumps({"begun": count}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(json.dumps({"stored": stored, "failures": failures}), flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextmanager
def beside(role: str, **options: Any) -> Iterator[dict[str, Any]]:
    """A load in a process of its own; what it says at its end is added to what is given."""
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.gateway.load", "--role", role, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said: dict[str, Any] = {"begun": json.loads(process.stdout.readline())}
        yield said
        process.stdin.close()
        said["ended"] = json.loads(process.stdout.readline())
        process.terminate()


async def measure(stack: EmbeddedStack, arguments: argparse.Namespace) -> dict[str, Any]:
    """The calls alone, beside watches, and beside watches and uploads."""
    connection = stack.connection()
    assert connection is not None
    token = read_secret(stack.home, "client_token")
    processes = {process.name: process for process in connection.processes}
    pid, redis_port = processes["gateway"].pid, processes["redis"].port
    queue = connect(f"redis://:{read_secret(stack.home, 'redis_password')}@127.0.0.1:{redis_port}/0", lease_s=3600)
    async with GatewayClient(connection.server, token=token) as client:
        rows = stack.home / "rows.jsonl"
        rows.write_text('{"prompt": "1", "completion": "2"}\n')
        dataset, _ = await client.upload_dataset([rows], display_name="rows")
        model, _ = await client.upload_model(_model(stack.home / "model"), display_name="model")
        spec = {"model": {"model_id": model.model_id}, "dataset": {"dataset_id": dataset.dataset_id}}
        job_ids = [
            (await client.create_job(JobKind.SUPERVISED_TRAINING, spec, request_id=f"r{number}")).job_id
            for number in range(arguments.jobs)
        ]
    claims = [await queue.claim("train", f"w{number}", timeout_s=1) for number in range(arguments.jobs)]

    async def publish() -> None:
        for number in range(10**9):
            claim = claims[number % len(claims)]
            assert claim is not None
            await queue.publish(claim, [JobProgress(number)])
            await asyncio.sleep(1 / EVENTS_PER_S)

    async def phase() -> dict[str, Any]:
        cpu_s, start = process_cpu_s(pid), time.perf_counter()
        probed = await prober(connection.server, token, job_ids[0], arguments.seconds)
        wall_s = time.perf_counter() - start
        return probed | {
            "cpu_share": (process_cpu_s(pid) - cpu_s) / wall_s,
            **_held(pid),
            "queue_connections": len(await queue._client.client_list()),
        }

    publishing = asyncio.create_task(publish())
    common = {"target": connection.server, "token": token}
    result: dict[str, Any] = {"alone": await phase()}
    watching = {"jobs": ",".join(job_ids), "count": arguments.watchers, "channels": arguments.channels}
    with contextlib.ExitStack() as loads:
        said = await asyncio.to_thread(loads.enter_context, beside("watchers", **common, **watching))
        result["watchers"] = await phase() | {"watches": said}
        sending = {"count": arguments.uploads, "size": arguments.upload_bytes, "directory": stack.home}
        more = await asyncio.to_thread(loads.enter_context, beside("uploads", **common, **sending))
        result["watchers and uploads"] = await phase() | {"uploads": more}
        await asyncio.to_thread(loads.close)
    await asyncio.sleep(2)
    result["after"] = await phase()
    publishing.cancel()
    await queue.close()
    return result


def _held(pid: int) -> dict[str, float]:
    """What a process has now."""
    process = Path(f"/proc/{pid}")
    return {
        "rss_mib": process_rss_bytes(pid) / 2**20,
        "open_files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def _model(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=2000, help="connections that the watches come over")
    parser.add_argument("--jobs", default="50", help="how many are watched")
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--upload-bytes", type=int, default=20_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--role", choices=("main", "watchers", "uploads"), default="main", help=argparse.SUPPRESS)
    for name in ("target", "token", "count", "size", "directory"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    target, token = arguments.target, arguments.token
    if arguments.role == "watchers":
        job_ids = arguments.jobs.split(",")
        asyncio.run(watchers(target, token, job_ids, int(arguments.count), arguments.channels))
    elif arguments.role == "uploads":
        asyncio.run(uploads(target, token, int(arguments.count), int(arguments.size), Path(arguments.directory)))
    else:
        arguments.jobs = int(arguments.jobs)
        with (
            tempfile.TemporaryDirectory() as directory,
            EmbeddedStack(Path(directory), reward_replicas=0, trainers=0, evaluators=0) as stack,
        ):
            measured = asyncio.run(measure(stack, arguments))
        for name, phase in measured.items():
            print(name, {key: round(value, 2) if isinstance(value, float) else value for key, value in phase.items()})
        print("JSON " + json.dumps({"options": vars(arguments), "phases": measured, **conditions()}, default=str))


if __name__ == "__main__":
    main()
