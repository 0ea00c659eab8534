"""A gateway, a scorer and a worker in the middle of things, for Prometheus to scrape."""

import asyncio
import hashlib
import json
import sys
import textwrap
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import LlamaConfig, LlamaForSequenceClassification

from madpo.config import WorkerSettings
from madpo.errors import OverloadedError
from madpo.jobs.registry import KINDS
from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, open_queue
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.telemetry.metrics import new_registry, serve_metrics
from madpo.types import JobKind, PreferencePair
from madpo.v1 import dataset_service_pb2, job_service_pb2
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo.worker.metrics import TRAINING_FIGURES
from madpo.worker.worker import JobWorker
from tests.model_directories import save_directory

TOKEN = "a-token-of-this-test"
QUEUE = KINDS[JobKind.POLICY_TRAINING].queue
PATIENCE_S = 60

RUN = f"""
    import sys, time
    from pathlib import Path
    from madpo.worker.workspace import Run
    from madpo.types import JobProgress

    run = Run.open(Path(sys.argv[1]))
    run.watch_lifeline()
    step = 0
    while not run.stop_requested:
        step += 4
        figures = {{name: 0.5 for name in {sorted(TRAINING_FIGURES)!r}}}
        figures |= {{"interval/steps": 4, "interval/rows": 32, "interval/step_s": 0.2, "interval/margin_wait_s": 0.05}}
        run.progress(JobProgress(step, 10**6, figures, remaining_s=60.0, phase="training"))
        time.sleep(0.2)
    run.stop()
"""


@dataclass(frozen=True)
class Targets:
    """Metrics ports by the name of the service."""

    ports: Mapping[str, int]

    def read(self) -> dict[str, list[dict[str, str]]]:
        """Labels of every series by its name, over all services."""
        series: dict[str, list[dict[str, str]]] = {}
        for port in self.ports.values():
            for family in text_string_to_metric_families(get(f"http://127.0.0.1:{port}/metrics").decode()):
                for sample in family.samples:
                    series.setdefault(sample.name, []).append(dict(sample.labels))
        return series


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return bytes(response.read())


def publish_reward_model(directory: Path, settings: WorkerSettings, tokenizer: Any) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    save_directory(LlamaForSequenceClassification(config), tokenizer, directory / "model")
    models = ModelStore(open_store(settings), directory / "publisher")
    return models.publish(directory / "model", display_name="toy", kind="reward")[0].model_id


@asynccontextmanager
async def serving(service: Callable[..., Any], settings: Any) -> AsyncIterator[tuple[int, int]]:
    """A service and its metrics; gives the ports of both."""
    registry = new_registry()
    async with RunningServer(service(settings, registry), settings, token=TOKEN, registry=registry) as server:
        metrics = serve_metrics(registry, host="127.0.0.1", port=0)
        yield metrics.server_port, server.port
        metrics.shutdown()
        metrics.server_close()


@asynccontextmanager
async def working(settings: WorkerSettings, directory: Path) -> AsyncIterator[int]:
    """A worker at a training that goes on until it is stopped."""
    script = directory / "run.py"
    script.write_text(textwrap.dedent(RUN))
    registry, stop, queue = new_registry(), asyncio.Event(), open_queue(settings)
    worker = JobWorker(
        queue,
        open_store(settings),
        queue_name=QUEUE,
        command=lambda workspace: [sys.executable, str(script), str(workspace)],
        settings=settings,
        registry=registry,
    )
    running = asyncio.create_task(worker.run(stop))
    metrics = serve_metrics(registry, host="127.0.0.1", port=0)
    yield metrics.server_port
    stop.set()
    await running
    metrics.shutdown()
    metrics.server_close()
    await queue.close()


@asynccontextmanager
async def busy(settings: WorkerSettings, gateway_port: int, reward_port: int, model_id: str) -> AsyncIterator[None]:
    """Clients of everything that is counted."""
    queue, client = open_queue(settings), RewardClient(f"127.0.0.1:{reward_port}", token=TOKEN, timeout_s=PATIENCE_S)
    async with open_channel(f"127.0.0.1:{gateway_port}") as channel:
        job_id = await fill(queue)
        clients = [
            asyncio.create_task(score(client, model_id)),
            asyncio.create_task(upload(channel)),
            asyncio.create_task(watch(channel, job_id)),
        ]
        await asyncio.sleep(0)
        yield
        for task in clients:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    await client.close()
    await queue.close()


async def fill(queue: RedisJobQueue) -> str:
    """One job to run, one to stay pending, one that waits for it."""
    first = await queue.create(JobRequest("first", JobKind.POLICY_TRAINING, {}))
    second = await queue.create(JobRequest("second", JobKind.POLICY_TRAINING, {}))
    await queue.create(JobRequest("third", JobKind.EVALUATION, {}, depends_on=(second.job_id,)))
    return first.job_id


async def score(client: RewardClient, model_id: str) -> None:
    pair = PreferencePair("the film", "was good", "was bad")
    for number in range(10**6):
        text = " ".join(["good" if bit == "1" else "bad" for bit in f"{number:b}"])
        await client.score_pairs(model_id, [pair, PreferencePair("the film was", text, ".")])
        too_many = [PreferencePair(f"{number} {place}", "film " * 200, "bad " * 200) for place in range(40)]
        with suppress(OverloadedError):  # as a whole; its parts are taken, and kept in the cache
            await client.score_pairs(model_id, too_many)
        await asyncio.sleep(0.1)


async def upload(channel: grpc.aio.Channel) -> None:
    stub = DatasetServiceStub(channel)  # type: ignore[no-untyped-call]
    for number in range(10**6):
        data = json.dumps({"prompt": str(number)}).encode() + b"\n"
        header = dataset_service_pb2.UploadDatasetHeader(format="jsonl")
        digest = hashlib.sha256(data).hexdigest()
        parts = [{"header": header}, {"chunk": data}, {"sha256": digest}]
        request = iter([dataset_service_pb2.UploadDatasetRequest(**part) for part in parts])
        await stub.UploadDataset(request, metadata=call_metadata(TOKEN))
        await asyncio.sleep(0.3)


async def watch(channel: grpc.aio.Channel, job_id: str) -> None:
    stub = JobServiceStub(channel)  # type: ignore[no-untyped-call]
    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    async for _ in stub.WatchJob(request, metadata=call_metadata(TOKEN)):
        pass
