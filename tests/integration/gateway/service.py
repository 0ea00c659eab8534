"""A running gateway, what is behind it, and what there is to send it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from prometheus_client import CollectorRegistry

from madpo.errors import InvalidArgumentError
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue, connect
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.server import RunningServer
from madpo.rpc.status import from_rpc_error
from madpo.storage import keys
from madpo.storage.open import open_store
from madpo.v1 import job_service_pb2
from madpo.v1.access_service_pb2_grpc import AccessServiceStub
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo.v1.model_service_pb2_grpc import ModelServiceStub
from madpo.v1.retention_service_pb2_grpc import RetentionServiceStub
from madpo.v1.store_service_pb2_grpc import StoreServiceStub
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.messages import dataset_parts, json_lines, model_parts, ref, safetensors

TOKEN = "a-token-of-this-test"
NO_MODEL, NO_DATASET, NO_JOB = "model-" + "0" * 32, "dataset-" + "0" * 32, "job-" + "0" * 32
PAIRS = [{"prompt": f"{n}+{n}?", "chosen": str(2 * n), "rejected": str(2 * n + 1)} for n in range(20)]
COMPLETIONS = [{"prompt": "hello", "completion": str(n)} for n in range(3)]
PROMPTS = [{"prompt": str(n)} for n in range(3)]
POLICY_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
REWARD_CONFIG = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "num_labels": 1}


@dataclass
class Gateway:
    """A running gateway and what is behind it."""

    settings: GatewaySettings
    store: ObjectStore
    queue: RedisJobQueue
    target: str
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    def __post_init__(self) -> None:
        self.datasets = DatasetServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.models = ModelServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.jobs = JobServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.retention = RetentionServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.store_service = StoreServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.access = AccessServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def ask(self, method: Any, request: Any, token: str = TOKEN) -> Any:
        return await method(request, metadata=call_metadata(token), timeout=30)

    async def collect(self, method: Any, request: Any) -> list[Any]:
        return [message async for message in method(request, metadata=call_metadata(TOKEN), timeout=30)]

    async def upload_dataset(self, rows: Iterable[Mapping[str, Any]], **kwargs: Any) -> Any:
        return await self.ask(self.datasets.UploadDataset, dataset_parts(json_lines(rows), **kwargs))

    async def upload_model(self, config: Mapping[str, Any] = POLICY_CONFIG, weights: int = 1) -> Any:
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(weights)}
        files["tokenizer.json"] = b"{}"
        return await self.ask(self.models.UploadModel, model_parts(files))

    async def create(self, spec: Mapping[str, Any], request_id: str = "a-request", **fields: Any) -> Any:
        request = job_service_pb2.CreateJobRequest(
            request_id=request_id, spec=ParseDict(dict(spec), job_service_pb2.JobSpec()), **fields
        )
        return (await self.ask(self.jobs.CreateJob, request)).job

    async def ready_job(self, request_id: str = "a-request") -> str:
        """A supervised training job over new data, PENDING."""
        dataset = (await self.upload_dataset(COMPLETIONS)).dataset
        model = (await self.upload_model()).model
        spec = {"model": {"model_id": model.model_id}, "dataset": ref(dataset.dataset_id)}
        return str((await self.create({"supervised_training": spec}, request_id)).job_id)

    def stored(self) -> list[str]:
        """Keys of everything stored but the audit log."""
        return stored_keys(self.store)

    def spooled(self) -> list[Path]:
        """Everything under the directory uploads are spooled to."""
        return list(self.settings.uploads.rglob("*"))


def stored_keys(store: ObjectStore) -> list[str]:
    """Keys of everything stored but the audit log, which notes what was refused as well."""
    return [info.key for info in store.list("") if not info.key.startswith(f"{keys.AUDIT}/")]


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    registry = CollectorRegistry()
    service = GatewayService(settings, registry)
    queue = connect(settings.redis_url.get_secret_value(), namespace=settings.redis_namespace, lease_s=settings.lease_s)
    server = RunningServer(service, settings, token=TOKEN, registry=registry)
    async with server, open_channel(f"127.0.0.1:{server.port}") as channel:
        yield Gateway(settings, open_store(settings), queue, f"127.0.0.1:{server.port}", channel, registry)
    await queue.close()


@dataclass
class Refusal:
    """What the client of a refused call learned."""

    code: str
    message: str
    violations: dict[str, str]


async def refusal(call: Awaitable[Any]) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    violations = error.violations if isinstance(error, InvalidArgumentError) else ()
    return Refusal(
        caught.value.code().name, str(error), {violation.field: violation.description for violation in violations}
    )


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until the condition, or what it awaits, holds."""
    while True:
        held = condition()
        if await held if asyncio.iscoroutine(held) else held:
            return
        await asyncio.sleep(0.02)


@dataclass
class Material:
    """Ids of everything a spec can refer to."""

    pairs: str
    pairs_with_margins: str
    completions: str
    prompts: str
    policy: str
    reward: str


async def make_material(gateway: Gateway) -> Material:
    datasets = [PAIRS, [row | {"margin": 0.5} for row in PAIRS], COMPLETIONS, PROMPTS]
    ids = [(await gateway.upload_dataset(rows)).dataset.dataset_id for rows in datasets]
    models = [(await gateway.upload_model(config)).model.model_id for config in (POLICY_CONFIG, REWARD_CONFIG)]
    return Material(*ids, *models)
