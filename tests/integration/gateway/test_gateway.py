"""The gateway over the wire: real server, raw stubs, a real queue and a real store."""

import asyncio
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from madpo.config import load_settings
from madpo.data.check.report import CheckReport
from madpo.errors import InvalidArgumentError
from madpo.jobs.supervised_training import SupervisedTrainingSpec
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.rpc import convert
from madpo.rpc.channel import MAX_READ_ROWS, call_metadata, open_channel
from madpo.rpc.server import RunningServer
from madpo.rpc.status import from_rpc_error
from madpo.storage import keys
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.ledger import LEDGER_PARTS
from madpo.storage.open import open_store
from madpo.storage.results import read_result, read_spec
from madpo.types import (
    CheckpointPublished,
    FileEntry,
    JobKind,
    JobProgress,
    JobResult,
    JobState,
    LogLine,
    PreferencePair,
)
from madpo.v1 import dataset_service_pb2, job_service_pb2, model_service_pb2
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo.v1.model_service_pb2_grpc import ModelServiceStub
from madpo_client.check import check_file
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from tests.hub_mirror import COMMIT, hub

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
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    def __post_init__(self) -> None:
        self.datasets = DatasetServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.models = ModelServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.jobs = JobServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def ask(self, method: Any, request: Any) -> Any:
        return await method(request, metadata=call_metadata(TOKEN), timeout=30)

    async def collect(self, method: Any, request: Any) -> list[Any]:
        return [message async for message in method(request, metadata=call_metadata(TOKEN), timeout=30)]

    async def upload_dataset(self, rows: Iterable[Mapping[str, Any]], **kwargs: Any) -> Any:
        return await self.ask(self.datasets.UploadDataset, dataset_parts(json_lines(rows), **kwargs))

    async def upload_model(self, config: Mapping[str, Any] = POLICY_CONFIG, weights: int = 1) -> Any:
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(weights)}
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
        spec = {"model": {"model_id": model.model_id}, "dataset": {"dataset_id": dataset.dataset_id}}
        return str((await self.create({"supervised_training": spec}, request_id)).job_id)

    def stored(self) -> list[str]:
        """Keys of everything stored."""
        return [info.key for info in self.store.list("")]

    def spooled(self) -> list[Path]:
        """Everything under the directory uploads are spooled to."""
        return list(self.settings.uploads.rglob("*"))


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    registry = CollectorRegistry()
    service = GatewayService(settings, registry)
    queue = connect(settings.redis_url.get_secret_value(), namespace=settings.redis_namespace, lease_s=settings.lease_s)
    server = RunningServer(service, settings, token=TOKEN, registry=registry)
    async with server, open_channel(f"127.0.0.1:{server.port}") as channel:
        yield Gateway(settings, open_store(settings), queue, channel, registry)
    await queue.close()


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, redis_namespace: str) -> GatewaySettings:
    return GatewaySettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        token=SecretStr(TOKEN),
        scratch=tmp_path / "scratch",
        max_upload_bytes=3_000_000,
        max_model_bytes=100_000,
        grace_s=0,
    )


@pytest.fixture
async def gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    async with running(settings) as gateway:
        yield gateway


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


# ---- uploads


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def header(**fields: Any) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(header=dataset_service_pb2.UploadDatasetHeader(**fields))


def chunk(data: bytes) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(chunk=data)


def digest(data: bytes) -> Any:
    return dataset_service_pb2.UploadDatasetRequest(sha256=hashlib.sha256(data).hexdigest())


def dataset_parts(data: bytes, *, file_format: str = "jsonl", name: str = "") -> list[Any]:
    chunks = [chunk(data[start : start + 100]) for start in range(0, len(data), 100)]
    return [header(format=file_format, display_name=name), *chunks, digest(data)]


def safetensors(weights: int) -> bytes:
    shape = {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}
    text = json.dumps({"weight": shape}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * weights)


def model_header(files: int = 2) -> Any:
    return model_service_pb2.UploadModelRequest(header=model_service_pb2.UploadModelHeader(file_count=files))


def model_file(path: str, data: bytes, **changed: Any) -> list[Any]:
    announced = {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changed
    request = model_service_pb2.UploadModelRequest
    return [request(file=model_service_pb2.ModelFile(**announced)), *([request(chunk=data)] if data else [])]


def model_parts(files: Mapping[str, bytes]) -> list[Any]:
    return [model_header(len(files)), *(part for path, data in files.items() for part in model_file(path, data))]


def received(messages: Sequence[Any]) -> dict[str, bytes]:
    """Files of a download; each must match its description."""
    files: dict[str, tuple[Any, bytes]] = {}
    for message in messages:
        if message.WhichOneof("part") == "file":
            path = message.file.path
            files[path] = (message.file, b"")
        else:
            files[path] = (files[path][0], files[path][1] + message.chunk)
    for described, data in files.values():
        assert (described.size_bytes, described.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return {path: data for path, (_, data) in files.items()}


# ---- who may call

REQUESTS: dict[str, Message] = {
    "UploadDataset": header(format="jsonl"),
    "ImportDataset": dataset_service_pb2.ImportDatasetRequest(hub_id="a/b"),
    "GetUpload": dataset_service_pb2.GetUploadRequest(upload_id="0" * 32),
    "GetDataset": dataset_service_pb2.GetDatasetRequest(dataset_id=NO_DATASET),
    "ListDatasets": dataset_service_pb2.ListDatasetsRequest(),
    "DeleteDataset": dataset_service_pb2.DeleteDatasetRequest(dataset_id=NO_DATASET),
    "CheckDataset": dataset_service_pb2.CheckDatasetRequest(dataset_id=NO_DATASET),
    "ReadDatasetRows": dataset_service_pb2.ReadDatasetRowsRequest(dataset_id=NO_DATASET, rows=[1]),
    "UploadModel": model_header(),
    "ImportModel": model_service_pb2.ImportModelRequest(hub_id="a/b"),
    "GetModel": model_service_pb2.GetModelRequest(model_id=NO_MODEL),
    "ListModels": model_service_pb2.ListModelsRequest(),
    "ListCheckpoints": model_service_pb2.ListCheckpointsRequest(job_id=NO_JOB),
    "DownloadModel": model_service_pb2.DownloadModelRequest(model_id=NO_MODEL),
    "CreateJob": job_service_pb2.CreateJobRequest(request_id="a-request"),
    "GetJob": job_service_pb2.GetJobRequest(job_id=NO_JOB),
    "ListJobs": job_service_pb2.ListJobsRequest(),
    "CancelJob": job_service_pb2.CancelJobRequest(job_id=NO_JOB),
    "WatchJob": job_service_pb2.WatchJobRequest(job_id=NO_JOB),
    "ListArtifacts": job_service_pb2.ListArtifactsRequest(job_id=NO_JOB),
    "DownloadArtifact": job_service_pb2.DownloadArtifactRequest(job_id=NO_JOB, name="report.json"),
    "DownloadLedgerParts": job_service_pb2.DownloadLedgerPartsRequest(job_id=NO_JOB),
}
ANSWERS = {
    **dict.fromkeys(("GetUpload", "ListDatasets", "ListModels", "ListJobs"), "OK"),
    **dict.fromkeys(("UploadDataset", "ImportDataset", "UploadModel", "ImportModel", "CreateJob"), "INVALID_ARGUMENT"),
}


async def test_every_call_needs_the_token(gateway: Gateway) -> None:
    for contract in (dataset_service_pb2, model_service_pb2, job_service_pb2):
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for token in (None, TOKEN[:-1], TOKEN + "x", ""):
                    code = await outcome(gateway.channel, service.full_name, method, token=token)
                    assert code == "UNAUTHENTICATED", (method.name, token)
                code = await outcome(gateway.channel, service.full_name, method, token=TOKEN)
                assert code == ANSWERS.get(method.name, "NOT_FOUND"), method.name


async def outcome(channel: grpc.aio.Channel, service: str, method: Any, *, token: str | None) -> str:
    """Status code of one call that sends a single request."""
    path, request = f"/{service}/{method.name}", REQUESTS[method.name].SerializeToString()
    metadata = call_metadata(token)
    try:
        if method.server_streaming:
            async for _ in channel.unary_stream(path)(request, metadata=metadata, timeout=30):
                pass
        elif method.client_streaming:
            await channel.stream_unary(path)([request], metadata=metadata, timeout=30)
        else:
            await channel.unary_unary(path)(request, metadata=metadata, timeout=30)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("method", "request_type", "field"),
    [
        ("datasets.GetDataset", dataset_service_pb2.GetDatasetRequest, "dataset_id"),
        ("datasets.DeleteDataset", dataset_service_pb2.DeleteDatasetRequest, "dataset_id"),
        ("models.GetModel", model_service_pb2.GetModelRequest, "model_id"),
        ("models.ListCheckpoints", model_service_pb2.ListCheckpointsRequest, "job_id"),
        ("jobs.GetJob", job_service_pb2.GetJobRequest, "job_id"),
        ("jobs.CancelJob", job_service_pb2.CancelJobRequest, "job_id"),
        ("jobs.ListArtifacts", job_service_pb2.ListArtifactsRequest, "job_id"),
    ],
)
async def test_text_that_is_no_id_never_becomes_a_key(
    gateway: Gateway, method: str, request_type: Any, field: str
) -> None:
    service, name = method.split(".")
    for value in ("", "../../etc", NO_JOB + "\n", NO_DATASET + "/x", "job-" + "g" * 32):
        refused = await refusal(gateway.ask(getattr(getattr(gateway, service), name), request_type(**{field: value})))
        assert refused.code == "INVALID_ARGUMENT"
        assert list(refused.violations) == [field]


# ---- datasets


async def test_an_uploaded_file_is_a_dataset_that_can_be_looked_at(gateway: Gateway) -> None:
    rows = [*({**row, "margin": 1.0} for row in PAIRS), PAIRS[3] | {"chosen": "long answer", "margin": -1.0}]
    rows.append(rows[0])

    uploaded = await gateway.upload_dataset(rows, name="sums")

    dataset = uploaded.dataset
    assert uploaded.created
    assert (dataset.kind, dataset.rows, dataset.display_name) == ("preference", 22, "sums")
    assert list(dataset.columns) == ["reward_margin"]
    request = dataset_service_pb2.GetDatasetRequest(dataset_id=dataset.dataset_id)
    assert (await gateway.ask(gateway.datasets.GetDataset, request)).dataset == dataset
    assert gateway.spooled() == []


async def test_a_stored_dataset_has_the_report_of_its_file(gateway: Gateway, tmp_path: Path) -> None:
    rows, held_out = [*PAIRS, PAIRS[3] | {"chosen": "long answer"}, PAIRS[0]], [PAIRS[1] | {"chosen": "another"}]
    stored, other = [(await gateway.upload_dataset(each)).dataset.dataset_id for each in (rows, held_out)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "held-out", "rows")}
    files["data"].write_bytes(json_lines(rows))
    files["held-out"].write_bytes(json_lines(held_out))
    local = check_file(files["data"], held_out=files["held-out"], rows_file=files["rows"])

    request = dataset_service_pb2.CheckDatasetRequest(dataset_id=stored, eval_dataset_id=other)
    parts = await gateway.collect(gateway.datasets.CheckDataset, request)

    assert [part.WhichOneof("part") for part in parts] == ["report_json", "rows_chunk"]
    report = CheckReport.from_json(parts[0].report_json)
    assert report.rows.kinds == local.rows.kinds
    assert report == local.model_copy(update={"name": stored, "rows": report.rows})
    assert {finding.code for finding in report.findings} == {"duplicate", "leaked_prompt"}
    assert parts[1].rows_chunk == files["rows"].read_bytes()
    for field in ("dataset_id", "eval_dataset_id"):
        wrong = dataset_service_pb2.CheckDatasetRequest(**({"dataset_id": stored} | {field: "../etc"}))
        assert list((await refusal(gateway.collect(gateway.datasets.CheckDataset, wrong))).violations) == [field]


async def test_the_same_content_is_one_dataset_in_any_format(gateway: Gateway) -> None:
    first = await gateway.upload_dataset(PAIRS, name="first")

    again = await gateway.upload_dataset(PAIRS, name="again")
    other = await gateway.ask(
        gateway.datasets.UploadDataset, dataset_parts(parquet(PAIRS), file_format="parquet", name="other")
    )

    assert [first.created, again.created, other.created] == [True, False, False]
    assert first.dataset == again.dataset == other.dataset
    listed = await gateway.ask(gateway.datasets.ListDatasets, dataset_service_pb2.ListDatasetsRequest())
    assert list(listed.datasets) == [first.dataset]


async def test_a_file_with_bad_rows_is_refused_whole_and_each_row_is_named(gateway: Gateway) -> None:
    lines = json_lines([*PAIRS, {"prompt": 1, "chosen": "a", "rejected": "b"}, {"prompt": "x"}, *PAIRS])

    refused = await refusal(gateway.ask(gateway.datasets.UploadDataset, dataset_parts(lines + b"{oops\n")))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ["row 21.prompt", "row 22", "row 43"]
    assert refused.violations["row 21.prompt"] == "must be text or a list of messages, got int"
    assert gateway.stored() == []
    assert gateway.spooled() == []


async def test_very_many_bad_rows_still_make_an_error_that_arrives(gateway: Gateway) -> None:
    rows = [{"prompt": [{"role": "ü" * 70, "content": "x"}]} for _ in range(100)]

    refused = await refusal(gateway.upload_dataset(rows))

    # As many of the 20 as an error can carry, the first of them.
    assert list(refused.violations) == [f"row {row}.prompt[0].role" for row in range(1, len(refused.violations) + 1)]
    assert 10 <= len(refused.violations) <= 20
    assert refused.message.startswith("at least 20 unusable rows, first row 1.prompt[0].role")


GOOD = json_lines(COMPLETIONS)


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ([], "header", "first message"),
        ([chunk(GOOD), digest(GOOD)], "header", "first message"),
        ([header(format="xml"), chunk(GOOD), digest(GOOD)], "header.format", "arrow, csv, got 'xml'"),
        ([header(format="jsonl", display_name="x" * 201)], "header.display_name", "at most 200"),
        ([header(format="jsonl", display_name="a\nb")], "header.display_name", "printable"),
        ([header(format="jsonl"), chunk(GOOD), digest(GOOD + b"x")], "sha256", "have digest"),
        ([header(format="jsonl"), chunk(GOOD)], "sha256", "ended early"),
        ([header(format="jsonl"), header(format="jsonl")], "part", "must be a chunk"),
        ([header(format="jsonl"), chunk(bytes(1024 * 1024 + 1))], "chunk", "at most 1048576 bytes"),
        ([header(format="jsonl"), *[chunk(bytes(1_000_000))] * 4], "chunk", "max_upload_bytes (3000000 bytes)"),
        ([header(format="jsonl"), digest(b"")], None, "no rows"),
        ([header(format="parquet"), chunk(GOOD), digest(GOOD)], None, "not readable Parquet"),
    ],
)
async def test_an_upload_that_is_not_as_agreed_is_refused(
    gateway: Gateway, parts: list[Any], field: str | None, reason: str
) -> None:
    refused = await refusal(gateway.ask(gateway.datasets.UploadDataset, parts))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ([field] if field else [])
    assert reason in refused.message
    assert gateway.stored() == []
    assert gateway.spooled() == []


async def test_a_client_that_goes_away_in_an_upload_leaves_nothing(gateway: Gateway) -> None:
    call = gateway.datasets.UploadDataset(metadata=call_metadata(TOKEN))
    await call.write(header(format="jsonl"))
    await call.write(chunk(GOOD))
    await eventually(lambda: any(path.is_file() for path in gateway.spooled()))

    call.cancel()

    await eventually(lambda: gateway.spooled() == [])
    assert gateway.stored() == []


async def test_some_rows_are_read_in_their_order_whatever_their_size(gateway: Gateway) -> None:
    rows = [{"prompt": f"{n} {'x' * 200_000}", "chosen": "a", "rejected": "b"} for n in range(1, 9)]
    dataset_id = (await gateway.upload_dataset(rows)).dataset.dataset_id
    request = dataset_service_pb2.ReadDatasetRowsRequest

    messages = await gateway.collect(
        gateway.datasets.ReadDatasetRows, request(dataset_id=dataset_id, rows=[8, 2, 3, 5, 7, 2])
    )

    assert len(messages) > 1
    read = [convert.dataset_row_from_proto(row) for message in messages for row in message.rows]
    assert read == [PreferencePair(rows[n - 1]["prompt"], "a", "b", row=n) for n in (2, 3, 5, 7, 8)]
    assert await gateway.collect(gateway.datasets.ReadDatasetRows, request(dataset_id=dataset_id)) == []


async def test_rows_that_cannot_be_read_are_refused(gateway: Gateway) -> None:
    dataset_id = (await gateway.upload_dataset(PAIRS)).dataset.dataset_id

    async def refused(dataset_id: str, rows: Iterable[int]) -> Refusal:
        request = dataset_service_pb2.ReadDatasetRowsRequest(dataset_id=dataset_id, rows=rows)
        return await refusal(gateway.collect(gateway.datasets.ReadDatasetRows, request))

    missing = await refused(dataset_id, [1, len(PAIRS) + 1])
    assert (missing.code, missing.message) == ("NOT_FOUND", f"{dataset_id} has no row {len(PAIRS) + 1}")
    assert (await refused(NO_DATASET, [1])).code == "NOT_FOUND"
    assert list((await refused("../models", [1])).violations) == ["dataset_id"]
    assert list((await refused(dataset_id, range(1, MAX_READ_ROWS + 2))).violations) == ["rows"]


async def test_datasets_come_in_pages(gateway: Gateway) -> None:
    made = {(await gateway.upload_dataset([{"prompt": str(n)}])).dataset.dataset_id for n in range(3)}
    request = dataset_service_pb2.ListDatasetsRequest

    first = await gateway.ask(gateway.datasets.ListDatasets, request(page_size=2))
    rest = await gateway.ask(gateway.datasets.ListDatasets, request(page_size=1000, page_token=first.next_page_token))

    assert (len(first.datasets), len(rest.datasets), rest.next_page_token) == (2, 1, "")
    assert {dataset.dataset_id for dataset in [*first.datasets, *rest.datasets]} == made
    negative = await refusal(gateway.ask(gateway.datasets.ListDatasets, request(page_size=-1)))
    assert list(negative.violations) == ["page_size"]
    unknown = await refusal(gateway.ask(gateway.datasets.ListDatasets, request(page_token="nonsense")))
    assert unknown.code == "INVALID_ARGUMENT"


async def test_a_dataset_in_use_stays_until_its_job_is_over(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    listed = await gateway.ask(gateway.datasets.ListDatasets, dataset_service_pb2.ListDatasetsRequest())
    request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=listed.datasets[0].dataset_id)

    refused = await refusal(gateway.ask(gateway.datasets.DeleteDataset, request))
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    await gateway.ask(gateway.datasets.DeleteDataset, request)

    assert refused.code == "FAILED_PRECONDITION"
    assert job_id in refused.message
    assert (await refusal(gateway.ask(gateway.datasets.DeleteDataset, request))).code == "NOT_FOUND"


# ---- models


async def test_a_model_comes_back_as_it_was_sent(gateway: Gateway) -> None:
    files = {
        "config.json": json.dumps(REWARD_CONFIG).encode(),
        "model.safetensors": safetensors(100),
        "extra/empty.txt": b"",
    }

    uploaded = await gateway.ask(gateway.models.UploadModel, model_parts(files))
    again = await gateway.ask(gateway.models.UploadModel, model_parts(files))

    model = uploaded.model
    assert (uploaded.created, again.created) == (True, False)
    assert (model.kind, model.architecture) == ("reward", "LlamaForSequenceClassification")
    request = model_service_pb2.GetModelRequest(model_id=model.model_id)
    assert (await gateway.ask(gateway.models.GetModel, request)).model == model == again.model
    listed = await gateway.ask(gateway.models.ListModels, model_service_pb2.ListModelsRequest())
    assert list(listed.models) == [model]
    download = model_service_pb2.DownloadModelRequest(model_id=model.model_id)
    assert received(await gateway.collect(gateway.models.DownloadModel, download)) == files
    download.without_weights = True
    del files["model.safetensors"]
    assert received(await gateway.collect(gateway.models.DownloadModel, download)) == files
    assert gateway.spooled() == []


WEIGHTS = model_file("model.safetensors", safetensors(1))
CONFIG = model_file("config.json", json.dumps(POLICY_CONFIG).encode())


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ([], "header", "first message"),
        ([*CONFIG, *WEIGHTS], "header", "first message"),
        ([model_header(0)], "header.file_count", "must be 1 to 1000"),
        ([model_header(1001)], "header.file_count", "must be 1 to 1000"),
        ([model_header()], "file", "ended after 0 of 2 files"),
        ([model_header(), *CONFIG], "file", "ended after 1 of 2 files"),
        ([model_header(1), *CONFIG, *WEIGHTS], "file", "one more than the announced 1"),
        ([model_header(), WEIGHTS[1]], "part", "must be a file"),
        ([model_header(), *CONFIG, model_header()], "part", "must be a file"),
        ([model_header(), *model_file("model.bin", b"x")], "file.path", ".safetensors"),
        ([model_header(), *model_file("../config.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *model_file("/etc/config.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *model_file("a\\b.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *CONFIG, *CONFIG], "file.path", "sent before"),
        ([model_header(), *CONFIG, *model_file("config.json/a.json", b"{}")], "file.path", "in the way"),
        ([model_header(), *model_file("a.json", b"x", sha256="0" * 64)], "file.sha256", "have digest"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=3), *WEIGHTS], "file.size_bytes", "received 2"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=3)], "file.size_bytes", "received 2"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=1)], "chunk", "larger than announced (1 bytes)"),
        ([model_header(), *model_file("a.json", b"", size_bytes=-1)], "file.size_bytes", "max_model_bytes"),
        ([model_header(), *model_file("a.json", b"", size_bytes=100_001)], "file.size_bytes", "max_model_bytes"),
        ([model_header(1), *CONFIG], "files", "no .safetensors"),
        ([model_header(1), *WEIGHTS], None, "config.json"),
        ([model_header(), *CONFIG, *model_file("model.safetensors", b"rubbish")], "files.model.safetensors", "header"),
        (
            [model_header(), *WEIGHTS, *model_file("config.json", b'{"auto_map": {"AutoModel": "x.Y"}}')],
            None,
            "code of its own",
        ),
        ([model_header(), *WEIGHTS, *model_file("config.json", b'{"architectures": ["Bert"]}')], None, "ForCausalLM"),
        (
            [model_header(), *WEIGHTS, *model_file("adapter_config.json", b'{"peft_type": "LORA"}')],
            None,
            "task_type",
        ),
    ],
)
async def test_a_model_upload_that_is_not_as_agreed_is_refused(
    gateway: Gateway, parts: list[Any], field: str | None, reason: str
) -> None:
    refused = await refusal(gateway.ask(gateway.models.UploadModel, parts))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ([field] if field else [])
    assert reason in refused.message
    assert gateway.stored() == []
    assert gateway.spooled() == []


async def test_a_client_that_goes_away_between_two_files_leaves_nothing(gateway: Gateway) -> None:
    call = gateway.models.UploadModel(metadata=call_metadata(TOKEN))
    for part in [model_header(4), *CONFIG, *WEIGHTS, *model_file("empty.txt", b"")]:
        await call.write(part)
    await eventually(lambda: any(path.name == "empty.txt" for path in gateway.spooled()))

    call.cancel()

    await eventually(lambda: gateway.spooled() == [])
    assert gateway.stored() == []


async def test_an_adapter_belongs_to_a_model_that_is_stored(gateway: Gateway) -> None:
    def adapter(base: str) -> list[Any]:
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
        return model_parts(
            {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors(2)}
        )

    base = (await gateway.upload_model()).model.model_id

    uploaded = await gateway.ask(gateway.models.UploadModel, adapter(base))

    assert (uploaded.model.kind, uploaded.model.base_model_id) == ("causal_lm", base)
    elsewhere = await refusal(gateway.ask(gateway.models.UploadModel, adapter("somebody/model")))
    assert "files.adapter_config.json" in elsewhere.violations
    assert (await refusal(gateway.ask(gateway.models.UploadModel, adapter(NO_MODEL)))).code == "NOT_FOUND"


async def test_checkpoints_and_the_final_model_of_a_job_can_be_downloaded(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    final = (await gateway.upload_model(weights=7)).model
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=claim.attempt)
    checkpoints.take_ownership()
    for step in (10, 20):
        directory = tmp_path / str(step)
        (directory / "model").mkdir(parents=True)
        (directory / "model" / "config.json").write_text(f'{{"step": {step}}}')
        (directory / "optimizer.safetensors").write_bytes(b"x" * step)
        checkpoints.publish(step, directory, metadata={})
    request = model_service_pb2.DownloadModelRequest

    listed = await gateway.ask(gateway.models.ListCheckpoints, model_service_pb2.ListCheckpointsRequest(job_id=job_id))
    tenth = await gateway.collect(gateway.models.DownloadModel, request(job_id=job_id, step=10))
    early = await refusal(gateway.collect(gateway.models.DownloadModel, request(job_id=job_id)))
    absent = await refusal(gateway.collect(gateway.models.DownloadModel, request(job_id=job_id, step=11)))
    await gateway.queue.succeed(claim, JobResult(model_id=final.model_id))
    finished = await gateway.collect(gateway.models.DownloadModel, request(job_id=job_id))

    assert [(checkpoint.step, checkpoint.attempt) for checkpoint in listed.checkpoints] == [(20, 1), (10, 1)]
    assert received(tenth) == {"config.json": b'{"step": 10}'}
    assert (early.code, absent.code) == ("FAILED_PRECONDITION", "NOT_FOUND")
    assert received(finished)["model.safetensors"] == safetensors(7)
    nothing = await refusal(gateway.collect(gateway.models.DownloadModel, request()))
    assert "source" in nothing.violations
    confused = await refusal(gateway.collect(gateway.models.DownloadModel, request(model_id=final.model_id, step=1)))
    assert "step" in confused.violations


# ---- the hub


async def test_a_model_is_imported_from_the_hub_at_a_commit(settings: GatewaySettings) -> None:
    pytest.importorskip("huggingface_hub")
    wanted = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(3)}
    request = model_service_pb2.ImportModelRequest
    with hub({**wanted, "pytorch_model.bin": b"pickle", "modeling.py": b"code"}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            imported = await gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/model", commit=COMMIT))
            unknown = await refusal(
                gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/other", commit=COMMIT))
            )
            assert gateway.spooled() == []

    model = convert.model_from_proto(imported.model)
    assert imported.created
    assert {file.path for file in model.files} == set(wanted)
    assert (model.display_name, model.metadata) == ("somebody/model", {"hub_id": "somebody/model", "commit": COMMIT})
    assert unknown.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("hub_id", "commit", "field"),
    [
        ("https://example.org/model", COMMIT, "hub_id"),
        ("../model", COMMIT, "hub_id"),
        ("a/b/c", COMMIT, "hub_id"),
        ("a/b", "main", "commit"),
        ("a/b", COMMIT + "\n", "commit"),
    ],
)
async def test_an_import_names_a_hub_model_and_a_full_commit(
    gateway: Gateway, hub_id: str, commit: str, field: str
) -> None:
    request = model_service_pb2.ImportModelRequest(hub_id=hub_id, commit=commit)

    refused = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert list(refused.violations) == [field]


async def test_without_a_hub_an_import_says_what_to_do_instead(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    request = model_service_pb2.ImportModelRequest(hub_id="private/model", commit=COMMIT)
    with hub({}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            refusing = await refusal(gateway.ask(gateway.models.ImportModel, request))
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
            not_installed = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert (refusing.code, not_installed.code) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    assert "the hub did not give model private/model" in refusing.message
    assert "huggingface_hub is not installed" in not_installed.message
    assert all("upload it instead" in refused.message for refused in (refusing, not_installed))


# ---- jobs


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


async def test_jobs_are_created_and_wait_for_what_they_use(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    model = {"model_id": ids.policy}

    supervised = await gateway.create(
        {"supervised_training": {"model": model, "dataset": {"dataset_id": ids.completions}}},
        "supervised",
        display_name="first",
    )
    reward = await gateway.create({"reward_training": {"model": model, "dataset": {"dataset_id": ids.pairs}}}, "reward")
    policy = await gateway.create(
        {
            "policy_training": {
                "model": {"job_id": supervised.job_id},
                "dataset": {"dataset_id": ids.pairs},
                "method": {"name": "madpo", "params": {"beta": 0.3}},
                "margin": {"reward_model": {"job_id": reward.job_id}},
            }
        },
        "policy",
    )
    evaluation = await gateway.create(
        {
            "evaluation": {
                "model": {"job_id": policy.job_id},
                "prompt_dataset": {"dataset_id": ids.prompts},
                "reference": model,
                "reward_model": {"model_id": ids.reward},
                "eval_dataset": {"dataset_id": ids.pairs},
            }
        },
        "evaluation",
        depends_on=[reward.job_id],
    )

    states = [convert.state_from_proto(job.state).value for job in (supervised, reward, policy, evaluation)]
    assert states == ["PENDING", "PENDING", "WAITING", "WAITING"]
    assert (list(policy.depends_on), list(evaluation.depends_on)) == (
        [supervised.job_id, reward.job_id],
        [reward.job_id, policy.job_id],
    )
    method = policy.spec.policy_training.method
    assert method.params["beta"] == pytest.approx(0.3)
    assert {"c_min", "c_max", "lam", "tau"} <= set(method.params)
    assert policy.spec.policy_training.training.global_batch_size == 32
    listed = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest(page_size=3))
    assert [job.job_id for job in listed.jobs] == [evaluation.job_id, policy.job_id, reward.job_id]
    kept = read_spec(gateway.store, supervised.job_id)
    assert (kept.kind, kept.display_name) == (JobKind.SUPERVISED_TRAINING, "first")
    assert SupervisedTrainingSpec.model_validate(kept.spec).dataset.dataset_id == ids.completions
    got = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=policy.job_id))
    assert got.job == policy


async def test_rules_for_scales_are_kept_in_the_job_and_a_calibration_waits_for_its_reward_model(
    gateway: Gateway,
) -> None:
    ids = await make_material(gateway)
    reward = await gateway.create(
        {"reward_training": {"model": {"model_id": ids.policy}, "dataset": {"dataset_id": ids.pairs}}}, "reward"
    )
    margin = {"reward_model": {"job_id": reward.job_id}, "temperature": "fit"}
    policy = await gateway.create(
        {
            "policy_training": {
                "model": {"model_id": ids.policy},
                "dataset": {"dataset_id": ids.pairs},
                "eval_dataset": {"dataset_id": ids.pairs},
                "method": {"name": "madpo_posterior", "params": {"tau": {"quantile": 0.75}}},
                "margin": margin,
            }
        },
        "policy",
    )
    calibration = await gateway.create(
        {"calibration": {"eval_dataset": {"dataset_id": ids.pairs}, **margin}}, "calibration"
    )

    assert policy.spec.policy_training.method.params["tau"]["quantile"] == 0.75
    assert policy.spec.policy_training.margin.temperature.string_value == "fit"
    assert list(calibration.depends_on) == [reward.job_id]
    assert calibration.spec.calibration.method.params["tau"] == pytest.approx(6.906754778648554)
    queued = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=calibration.job_id))
    assert queued.job.spec.calibration.temperature.string_value == "fit"


async def test_a_wrong_spec_is_refused_with_every_wrong_field_and_nothing_is_stored(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    supervised = (
        await gateway.create(
            {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": {"dataset_id": ids.completions}}},
            "good",
        )
    ).job_id
    policy, reward, pairs = {"model_id": ids.policy}, {"model_id": ids.reward}, ids.pairs
    training = {"model": policy, "dataset": {"dataset_id": pairs}, "margin": {"reward_model": reward}}
    before = gateway.stored()
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {"spec": "give one of"}),
        (
            {"supervised_training": {"dataset": {"dataset_id": "x"}}},
            {".model": "required", ".dataset.dataset_id": "match"},
        ),
        (
            {
                "supervised_training": {
                    "model": reward,
                    "dataset": {"dataset_id": pairs},
                    "eval_dataset": {"dataset_id": NO_DATASET},
                }
            },
            {
                ".model.model_id": "is a reward model; give a causal_lm model",
                ".dataset.dataset_id": "is a preference dataset; give a completion dataset",
                ".eval_dataset.dataset_id": "there is no dataset",
            },
        ),
        (
            {
                "supervised_training": {
                    "model": policy,
                    "dataset": {"dataset_id": ids.completions},
                    "training": {"epochs": -1},
                }
            },
            {".training.epochs": "greater than 0"},
        ),
        (
            {"reward_training": {"model": {"model_id": NO_MODEL}, "dataset": {"dataset_id": ids.prompts}}},
            {".model.model_id": "there is no model", ".dataset.dataset_id": "is a prompt dataset"},
        ),
        ({"policy_training": training | {"model": {"job_id": NO_JOB}}}, {".model.job_id": "there is no job"}),
        (
            {"policy_training": training | {"model": {"job_id": supervised, "step": 5}}},
            {".model.step": "has no checkpoint of step 5; it has none"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": {"job_id": supervised}}}},
            {".margin.reward_model.job_id": "is a supervised_training job; give one that trains a reward model"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": {"job_id": supervised, "step": 5}}}},
            {".margin.reward_model.step": "serves stored models only"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": policy}}},
            {".margin.reward_model.model_id": "is a causal_lm model; give a reward model"},
        ),
        ({"policy_training": training | {"method": {"name": "magic"}}}, {".method.name": "madpo"}),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": -1, "gamma": 1}}}},
            {".method.params.tau": "", ".method.params.gamma": ""},
        ),
        (
            {"policy_training": {"model": policy, "dataset": {"dataset_id": pairs}, "method": {"name": "madpo"}}},
            {".margin": "give reward_model, or source=dataset"},
        ),
        (
            {"policy_training": training | {"margin": {"source": "dataset"}}},
            {".margin.source": "has a margin; give reward_model"},
        ),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": "auto"}}}},
            {".eval_dataset": "tau would be found on held-out pairs, and none are given"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": reward, "temperature": "fit"}}},
            {".eval_dataset": "temperature would be found on held-out pairs"},
        ),
        (
            {
                "policy_training": {
                    "model": policy,
                    "dataset": {"dataset_id": ids.pairs_with_margins},
                    "eval_dataset": {"dataset_id": pairs},
                    "margin": {"source": "dataset", "temperature": "fit"},
                    "method": {"name": "madpo", "params": {"tau": {"quantile": 0.9}}},
                }
            },
            {".eval_dataset": "temperature would be found on its margins, and not every row of it has one"},
        ),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": {"quantile": 1.5}}}}},
            {".method.params.tau": 'must be a number > 0, {"quantile": q} with 0 < q < 1, or "auto"'},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": reward, "temperature": -1}}},
            {".margin.temperature": 'must be a number > 0, or "fit", got -1'},
        ),
        (
            {
                "calibration": {
                    "eval_dataset": {"dataset_id": ids.prompts},
                    "dataset": {"dataset_id": pairs},
                    "method": {"name": "dpo"},
                }
            },
            {
                ".method.name": "dpo reads no margins",
                ".eval_dataset.dataset_id": "is a prompt dataset",
                ".dataset": "has a margin; give reward_model",
            },
        ),
        (
            {"calibration": {"eval_dataset": {"dataset_id": pairs}, "reward_model": policy}},
            {".reward_model.model_id": "is a causal_lm model; give a reward model"},
        ),
        (
            {
                "calibration": {
                    "eval_dataset": {"dataset_id": pairs},
                    "reward_model": reward,
                    "method": {"params": {"tau": 0}},
                }
            },
            {".method.params.tau": "must be a number > 0"},
        ),
        (
            {
                "dataset_check": {
                    "dataset": {"dataset_id": NO_DATASET},
                    "eval_dataset": {"dataset_id": NO_DATASET},
                    "model": {"model_id": NO_MODEL},
                }
            },
            {
                ".model.model_id": "there is no model",
                ".dataset.dataset_id": "there is no dataset",
                ".eval_dataset.dataset_id": "there is no dataset",
            },
        ),
        (
            {"dataset_check": {"dataset": {"dataset_id": pairs}, "model": reward, "overlong": "cut"}},
            {".overlong": "'truncate_prompt'"},
        ),
        (
            {
                "evaluation": {
                    "model": reward,
                    "prompt_dataset": {"dataset_id": NO_DATASET},
                    "reference": reward,
                    "reward_model": policy,
                    "eval_dataset": {"dataset_id": ids.prompts},
                    "baseline_job_ids": [supervised, NO_JOB],
                }
            },
            {
                ".model.model_id": "is a reward model",
                ".prompt_dataset.dataset_id": "there is no dataset",
                ".reference.model_id": "is a reward model",
                ".reward_model.model_id": "is a causal_lm model",
                ".eval_dataset.dataset_id": "is a prompt dataset",
                ".baseline_job_ids.0": "give evaluation jobs",
                ".baseline_job_ids.1": "there is no job",
            },
        ),
    ]
    for spec, expected in cases:
        refused = await refusal(gateway.create(spec, "wrong"))
        path = f"spec.{next(iter(spec))}" if spec else ""
        assert refused.code == "INVALID_ARGUMENT", spec
        assert set(refused.violations) == {path + field for field in expected}, spec
        for field, reason in expected.items():
            assert reason in refused.violations[path + field], (field, refused)
    assert gateway.stored() == before


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"display_name": "x" * 201}, "display_name"),
        ({"depends_on": ["job-1"]}, "depends_on.0"),
        ({"depends_on": [NO_JOB]}, "depends_on"),
        ({"depends_on": [job_id_of(str(n)) for n in range(101)]}, "depends_on"),
    ],
)
async def test_a_wrong_request_is_refused_by_field(gateway: Gateway, fields: dict[str, Any], field: str) -> None:
    ids = await make_material(gateway)
    spec = {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": {"dataset_id": ids.completions}}}

    refused = await refusal(gateway.create(spec, **fields))

    assert (refused.code, list(refused.violations)) == ("INVALID_ARGUMENT", [field])


async def test_margins_may_come_from_the_dataset_and_a_method_may_do_without(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    policy = {"model_id": ids.policy}

    with_margins = await gateway.create(
        {
            "policy_training": {
                "model": policy,
                "dataset": {"dataset_id": ids.pairs_with_margins},
                "margin": {"source": "dataset"},
            }
        },
        "dataset",
    )
    without = await gateway.create(
        {"policy_training": {"model": policy, "dataset": {"dataset_id": ids.pairs}, "method": {"name": "dpo"}}}, "none"
    )

    assert with_margins.spec.policy_training.method.name == "madpo"
    assert not without.spec.policy_training.HasField("margin")


async def test_a_request_sent_again_is_the_same_job_whatever_happened_since(gateway: Gateway) -> None:
    job_id = await gateway.ready_job("once")
    job = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id))
    dataset_id = job.job.spec.supervised_training.dataset.dataset_id
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    await gateway.ask(gateway.datasets.DeleteDataset, dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id))
    spec = {
        "model": {"model_id": job.job.spec.supervised_training.model.model_id},
        "dataset": {"dataset_id": dataset_id},
    }

    again = await gateway.create({"supervised_training": spec}, "once")
    other = await refusal(gateway.create({"supervised_training": spec | {"training": {"seed": 1}}}, "once"))

    assert (again.job_id, convert.state_from_proto(again.state)) == (job_id, JobState.CANCELLED)
    assert other.code == "ALREADY_EXISTS"


async def test_a_request_sent_many_times_at_once_is_one_job(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    spec = {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": {"dataset_id": ids.completions}}}

    jobs = await asyncio.gather(*(gateway.create(spec, "once") for _ in range(8)))

    assert {job.job_id for job in jobs} == {job_id_of("once")}
    assert (await gateway.queue.status("train")).pending == 1


async def test_a_job_on_top_of_a_failed_one_is_refused(gateway: Gateway) -> None:
    failed = await gateway.ready_job()
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    await gateway.queue.fail(claim, "no luck")
    ids = await make_material(gateway)
    spec = {"model": {"job_id": failed}, "dataset": {"dataset_id": ids.completions}}
    before = gateway.stored()

    refused = await refusal(gateway.create({"supervised_training": spec}, "second"))

    assert refused.code == "FAILED_PRECONDITION"
    assert f"{failed} is FAILED" in refused.message
    assert gateway.stored() == before


async def test_a_cancelled_job_is_over_at_once_or_asked_to_stop(gateway: Gateway) -> None:
    waiting, taken = await gateway.ready_job("waiting"), await gateway.ready_job("taken")
    request = job_service_pb2.CancelJobRequest

    first = (await gateway.ask(gateway.jobs.CancelJob, request(job_id=waiting))).job
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    second = (await gateway.ask(gateway.jobs.CancelJob, request(job_id=taken))).job

    assert claim is not None
    assert convert.state_from_proto(first.state) is JobState.CANCELLED
    assert read_result(gateway.store, waiting).state is JobState.CANCELLED
    assert (convert.state_from_proto(second.state), second.cancel_requested) == (JobState.RUNNING, True)
    assert (await gateway.queue.renew(claim)).cancel_requested
    assert (await refusal(gateway.ask(gateway.jobs.CancelJob, request(job_id=NO_JOB)))).code == "NOT_FOUND"


async def test_a_watch_sees_events_live_and_goes_on_behind_a_cursor(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    request = job_service_pb2.WatchJobRequest
    stream = gateway.jobs.WatchJob(request(job_id=job_id), metadata=call_metadata(TOKEN), timeout=30)
    live = [await stream.read()]

    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    live.append(await stream.read())
    await gateway.queue.publish(claim, [JobProgress(1, 2, {"loss": 0.5}), LogLine("halfway"), CheckpointPublished(1)])
    live += [await stream.read() for _ in range(3)]
    await gateway.queue.succeed(claim, JobResult())
    live.append(await stream.read())

    assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    names = [message.event.WhichOneof("event") for message in live]
    assert names == ["state_change", "state_change", "progress", "log", "checkpoint", "state_change"]
    again = await gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id))
    assert again == live
    rest = await gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id, cursor=live[2].event.cursor))
    assert rest == live[3:]
    nobody = await refusal(gateway.collect(gateway.jobs.WatchJob, request(job_id=NO_JOB)))
    assert nobody.code == "NOT_FOUND"
    nowhere = await refusal(gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id, cursor="yesterday")))
    assert nowhere.code == "INVALID_ARGUMENT"


async def test_uploads_and_watchers_are_counted(gateway: Gateway) -> None:
    async def count(name: str, **labels: str) -> float | None:
        # Off the event loop: some figures are asked for when they are read.
        return await asyncio.to_thread(gateway.registry.get_sample_value, name, labels)

    job_id = await gateway.ready_job()
    assert await count("madpo_gateway_stored_total", content="dataset") == 1
    assert await count("madpo_gateway_upload_bytes_total", content="dataset") == len(json_lines(COMPLETIONS))
    assert await count("madpo_gateway_stored_total", content="model") == 1
    assert await count("madpo_gateway_upload_bytes_total", content="model") == len(
        json.dumps(POLICY_CONFIG).encode()
    ) + len(safetensors(1))
    assert await count("madpo_queue_depth", queue="train") == 1

    await gateway.upload_dataset(COMPLETIONS)
    assert await count("madpo_gateway_stored_total", content="dataset") == 1

    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    stream = gateway.jobs.WatchJob(request, metadata=call_metadata(TOKEN), timeout=30)
    await stream.read()
    assert await count("madpo_gateway_watch_streams") == 1
    stream.cancel()
    while await count("madpo_gateway_watch_streams"):
        await asyncio.sleep(0.02)


async def test_artifacts_are_listed_and_only_those_are_given(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    (tmp_path / "out" / "plots").mkdir(parents=True)
    report = json.dumps({"noise": list(range(300_000))}).encode()
    (tmp_path / "out" / "report.json").write_bytes(report)
    (tmp_path / "out" / "plots" / "reward.png").write_bytes(b"png")
    listing, download = job_service_pb2.ListArtifactsRequest, job_service_pb2.DownloadArtifactRequest
    before = await gateway.ask(gateway.jobs.ListArtifacts, listing(job_id=job_id))

    publish_artifacts(gateway.store, job_id, tmp_path / "out", attempt=1)
    listed = await gateway.ask(gateway.jobs.ListArtifacts, listing(job_id=job_id))
    chunks = await gateway.collect(gateway.jobs.DownloadArtifact, download(job_id=job_id, name="report.json"))

    assert list(before.artifacts) == []
    assert [FileEntry(file.name, file.size_bytes, file.sha256) for file in listed.artifacts] == [
        FileEntry("plots/reward.png", 3, hashlib.sha256(b"png").hexdigest()),
        FileEntry("report.json", len(report), hashlib.sha256(report).hexdigest()),
    ]
    assert len(chunks) > 1
    assert b"".join(message.chunk for message in chunks) == report
    for name in ("missing.json", "../../spec.json", "manifest.json"):
        refused = await refusal(gateway.collect(gateway.jobs.DownloadArtifact, download(job_id=job_id, name=name)))
        assert refused.code == "NOT_FOUND"


async def test_the_ledger_of_a_job_that_is_not_over_comes_in_parts(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    request = job_service_pb2.DownloadLedgerPartsRequest
    early = await refusal(gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=job_id)))
    assert (early.code, "has no ledger" in early.message) == ("NOT_FOUND", True)
    stored = [os.urandom(700_000), b"second"]
    parts = [keys.ledger_part(job_id, step=step, attempt=1) for step in (1, 2)]
    for key, data in zip(parts, stored, strict=True):
        gateway.store.put(key, data)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "state.json").write_text("{}")
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=1)
    checkpoints.take_ownership()
    checkpoints.publish(2, tmp_path / "files", metadata={LEDGER_PARTS: parts})

    messages = await gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=job_id))

    ends = [index for index, message in enumerate(messages) if message.ends_file]
    assert b"".join(message.chunk for message in messages[: ends[0]]) == stored[0]
    assert b"".join(message.chunk for message in messages[ends[0] :]) == stored[1]
    assert ends[0] > 1
    assert ends[1:] == [len(messages) - 1]
    unknown = await refusal(gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=NO_JOB)))
    assert unknown.code == "NOT_FOUND"


# ---- housekeeping


async def test_a_job_nobody_works_on_any_more_fails_in_the_end_and_that_is_recorded(settings: GatewaySettings) -> None:
    async with running(settings.model_copy(update={"lease_s": 0.15})) as gateway:
        job_id = await gateway.ready_job()
        for _ in range(3):
            assert await gateway.queue.claim("train", "a worker that dies", timeout_s=10) is not None

        await eventually(lambda: gateway.store.head(keys.job_result(job_id)) is not None)

        outcome = read_result(gateway.store, job_id)
        assert outcome.state is JobState.FAILED
        assert "a worker that dies stopped renewing its lease" in outcome.reason


@pytest.mark.parametrize("restarted", [False, True])
async def test_jobs_come_back_after_the_queue_lost_everything(
    settings: GatewaySettings, redis_process: Any, restarted: bool
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})
    async with running(settings) as gateway:
        done, cancelled, open_job = [await gateway.ready_job(name) for name in ("done", "cancelled", "open")]
        claim = await gateway.queue.claim("train", "worker", timeout_s=5)
        assert claim is not None
        await gateway.queue.succeed(claim, JobResult(summary={"loss": 0.5}))
        job = await gateway.queue.get(done)
        write_outcome(gateway.store, job)
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=cancelled))
        following = await gateway.create(
            {
                "supervised_training": {
                    "model": {"job_id": open_job},
                    "dataset": {"dataset_id": str(job.spec["dataset"]["dataset_id"])},
                }
            },
            "following",
            display_name="after the others",
        )
        CheckpointStore(gateway.store, open_job, attempt=4).take_ownership()
        before = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
        # The gateway has seen its jobs once; only then can it miss them.
        await asyncio.sleep(0.3)
        if not restarted:
            await flush(redis_process.url)
            await eventually(lambda: knows(gateway.queue, following.job_id))
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
    if restarted:
        await flush(redis_process.url)
        async with running(settings) as gateway:
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())

    assert [job.job_id for job in after.jobs] == [job.job_id for job in before.jobs]
    restored = {job.job_id: job for job in map(convert.job_from_proto, after.jobs)}
    states = [restored[job_id].state.value for job_id in (done, cancelled, open_job, following.job_id)]
    assert states == ["SUCCEEDED", "CANCELLED", "PENDING", "WAITING"]
    assert restored[done].result == JobResult(summary={"loss": 0.5})
    assert restored[open_job].attempt == 4
    original = convert.job_from_proto(following)
    copy = restored[following.job_id]
    assert (copy.spec, copy.display_name, copy.depends_on) == (original.spec, "after the others", (open_job,))
    assert copy.create_time == pytest.approx(original.create_time, abs=1)


def write_outcome(store: ObjectStore, job: Any) -> None:
    from madpo.storage.results import write_result

    write_result(store, job.job_id, state=job.state, result=job.result, reason=job.reason)


async def flush(url: str) -> None:
    async with aclosing(Redis.from_url(url)) as client:
        await client.flushall()


async def knows(queue: RedisJobQueue, job_id: str) -> bool:
    return job_id in {job.job_id for job in (await queue.list(page_size=100))[0]}


async def test_a_request_the_queue_lost_is_restored_not_made_anew(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        job_id = await gateway.ready_job("once")
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
        await flush(redis_process.url)

        assert await gateway.ready_job("once") == job_id

        assert (await gateway.queue.get(job_id)).state is JobState.CANCELLED


async def test_what_an_earlier_process_left_in_scratch_is_removed_and_nothing_else(settings: GatewaySettings) -> None:
    settings.uploads.mkdir(parents=True)
    (settings.uploads / "torn").write_bytes(b"x")
    (settings.scratch / "notes.txt").write_text("mine")

    async with running(settings) as gateway:
        assert gateway.spooled() == []

    assert (settings.scratch / "notes.txt").exists()


# ---- the process


def run_gateway(tmp_path: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "STORE_URL": f"file://{tmp_path}/store",
        "REDIS_URL": "redis://:hush-hush@127.0.0.1:9/0",
        "TOKEN": TOKEN,
        "SCRATCH": str(tmp_path / "scratch"),
    } | changed
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    return subprocess.run(
        [sys.executable, "-m", "madpo_gateway"],
        env=inherited | {f"MADPO_GATEWAY_{name}": value for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "redis://127.0.0.1:9/0 does not answer (see redis_url)"),
        (
            {
                "STORE_URL": "s3://bucket",
                "S3_ENDPOINT": "http://127.0.0.1:9",
                "S3_ACCESS_KEY": "key",
                "S3_SECRET_KEY": "hush-hush",
            },
            "http://127.0.0.1:9",
        ),
        ({"TOKEN": "hush-hush"}, "MADPO_GATEWAY_TOKEN"),
        ({"HOST": "0.0.0.0"}, "MADPO_GATEWAY_ALLOW_PLAINTEXT=true"),
    ],
)
def test_a_gateway_that_cannot_start_says_why_in_one_line_without_secrets(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    ended = run_gateway(tmp_path, **changed)

    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("gateway: ")
    assert said in last
    assert "Traceback" not in ended.stderr
    assert "hush-hush" not in ended.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(settings: GatewaySettings, host: str) -> None:
    given = settings.model_dump() | {"host": host}

    assert load_settings(GatewaySettings, **given).host == host


def test_the_gateway_needs_no_torch() -> None:
    program = "import sys, madpo_gateway.service; print(*sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.strip() == ""
