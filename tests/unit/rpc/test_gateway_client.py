"""The gateway client against a real gRPC server that misbehaves in the ways a network and a gateway can."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from madpo.errors import (
    CorruptObjectError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidPairError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from madpo.jobs.base import job_id_of
from madpo.rpc import convert
from madpo.rpc.channel import CHUNK_BYTES
from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.status import to_status
from madpo.types import FileEntry, Job, JobKind, JobProgress, JobState, Model, StateChange
from madpo.types import JobEvent as Event
from madpo.v1 import dataset_service_pb2 as datasets
from madpo.v1 import dataset_service_pb2_grpc as dataset_stubs
from madpo.v1 import job_service_pb2 as jobs
from madpo.v1 import job_service_pb2_grpc as job_stubs
from madpo.v1 import model_service_pb2 as models
from madpo.v1 import model_service_pb2_grpc as model_stubs

MODEL_ID = "model-" + "1" * 32
DATASET_ID = "dataset-" + "2" * 32
SPEC = {"model": {"model_id": MODEL_ID}, "dataset": {"dataset_id": DATASET_ID}}
JOB = Job("job-" + "0" * 32, JobKind.REWARD_TRAINING, JobState.PENDING, SPEC)


class Gateway(dataset_stubs.DatasetServiceServicer, job_stubs.JobServiceServicer, model_stubs.ModelServiceServicer):
    """Answers with whatever functions a test assigns to its methods; knows of no unfinished upload."""

    async def GetUpload(self, request: Any, context: Any) -> datasets.GetUploadResponse:  # noqa: N802
        return datasets.GetUploadResponse()


@asynccontextmanager
async def serving(gateway: Gateway, **options: Any) -> AsyncIterator[GatewayClient]:
    server = grpc.aio.server()
    dataset_stubs.add_DatasetServiceServicer_to_server(gateway, server)
    job_stubs.add_JobServiceServicer_to_server(gateway, server)
    model_stubs.add_ModelServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with GatewayClient(f"127.0.0.1:{port}", token="secret", **options) as client:
        yield client
    await server.stop(None)


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def sends_model(*parts: FileEntry | bytes) -> Callable[..., AsyncIterator[models.DownloadModelResponse]]:
    async def download(request: Any, context: Any) -> AsyncIterator[models.DownloadModelResponse]:
        for part in parts:
            if isinstance(part, bytes):
                yield models.DownloadModelResponse(chunk=part)
            else:
                yield models.DownloadModelResponse(file=convert.file_to_proto(part))

    return download


async def test_an_upload_arrives_in_chunks_with_its_digest_and_token(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 + b"end"
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(data)
    seen: list[datasets.UploadDatasetRequest] = []
    metadata: dict[str, Any] = {}

    async def upload(requests: Any, context: Any) -> datasets.UploadDatasetResponse:
        metadata.update(context.invocation_metadata())
        seen.extend([request async for request in requests])
        return datasets.UploadDatasetResponse(
            dataset=datasets.Dataset(dataset_id=DATASET_ID, kind="preference"), created=True
        )

    gateway = Gateway()
    gateway.UploadDataset = upload
    sent: list[int] = []
    async with serving(gateway) as client:
        dataset, created = await client.upload_dataset([path], display_name="a", format="jsonl", on_bytes=sent.append)
    chunks = [request.chunk for request in seen if request.WhichOneof("part") == "chunk"]
    assert (dataset.dataset_id, created) == (DATASET_ID, True)
    assert metadata["authorization"] == "Bearer secret"
    assert (seen[0].header.display_name, seen[0].header.format) == ("a", "jsonl")
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) == CHUNK_BYTES
    assert seen[-1].sha256 == hashlib.sha256(data).hexdigest()
    assert sum(sent) == len(data)


async def test_a_refusal_in_the_middle_of_an_upload_is_the_error_raised(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"x" * (16 * CHUNK_BYTES))

    async def refuse(requests: Any, context: Any) -> Any:
        async for _ in requests:
            code, text, trailers = to_status(InvalidPairError("row 7: chosen is empty"), request_id="r")
            await context.abort(code, text, trailers)

    gateway = Gateway()
    gateway.UploadDataset = refuse
    async with serving(gateway) as client:
        for _ in range(25):  # the failing write and the status race for being seen first
            with pytest.raises(InvalidPairError, match="row 7"):
                await client.upload_dataset([path], display_name="", format="jsonl")


async def test_a_file_that_cannot_be_read_is_named() -> None:
    async with serving(Gateway()) as client:
        with pytest.raises(InvalidArgumentError, match=r"cannot read .*absent.jsonl: No such file"):
            await client.upload_dataset([Path("absent.jsonl")], display_name="", format="jsonl")


async def test_an_upload_that_nobody_reads_ends_at_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"x" * (64 * CHUNK_BYTES))

    async def ignore(requests: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    gateway = Gateway()
    gateway.UploadDataset = ignore
    async with serving(gateway, timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceededError, match="stalled"):
            await client.upload_dataset([path], display_name="", format="jsonl")


async def test_a_model_upload_announces_every_file_and_leaves_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    config, weights = b'{"architectures": ["LlamaForCausalLM"]}', (2).to_bytes(8, "little") + b"{}"
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "sub" / "a.txt").write_bytes(b"text")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b.json").write_bytes(b"{}")
    seen: list[models.UploadModelRequest] = []

    async def upload(requests: Any, context: Any) -> models.UploadModelResponse:
        seen.extend([request async for request in requests])
        return models.UploadModelResponse(model=models.Model(model_id=MODEL_ID))

    gateway = Gateway()
    gateway.UploadModel = upload
    async with serving(gateway) as client:
        await client.upload_model(tmp_path, display_name="tiny", base_model_id=MODEL_ID)
    assert (seen[0].header.file_count, seen[0].header.base_model_id) == (3, MODEL_ID)
    files = [convert.file_from_proto(request.file) for request in seen if request.WhichOneof("part") == "file"]
    assert files == [entry("config.json", config), entry("model.safetensors", weights), entry("sub/a.txt", b"text")]


async def test_a_download_appears_whole(tmp_path: Path) -> None:
    gateway = Gateway()
    big, empty = entry("model.safetensors", b"abcdef"), entry("sub/empty.txt", b"")
    gateway.DownloadModel = sends_model(big, b"abc", b"def", empty)
    async with serving(gateway) as client:
        place = await client.download_model(tmp_path / "to" / "model", model_id=MODEL_ID)
    assert (place / "model.safetensors").read_bytes() == b"abcdef"
    assert (place / "sub" / "empty.txt").read_bytes() == b""
    assert [path.name for path in place.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((entry("config.json", b"abc"), b"abd"), "config.json does not match its SHA-256"),
        ((entry("config.json", b"abc"), b"ab", entry("b.json", b"")), "config.json arrived with 2 of 3 bytes"),
        ((entry("../config.json", b""),), "path '../config.json'"),
        ((entry("/etc/config.json", b""),), "path '/etc/config.json'"),
        ((b"bytes",), "bytes of no file"),
    ],
)
async def test_a_damaged_download_leaves_nothing(tmp_path: Path, parts: tuple[Any, ...], message: str) -> None:
    gateway = Gateway()
    gateway.DownloadModel = sends_model(*parts)
    async with serving(gateway) as client:
        with pytest.raises(CorruptObjectError, match=message):
            await client.download_model(tmp_path / "model", model_id=MODEL_ID)
    assert list(tmp_path.iterdir()) == []


async def test_a_download_never_touches_a_directory_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    async with serving(Gateway()) as client:
        with pytest.raises(FailedPreconditionError, match="not an empty directory"):
            await client.download_model(tmp_path, model_id=MODEL_ID)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


async def test_a_damaged_artifact_does_not_replace_the_file_before(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("old")

    async def download(request: Any, context: Any) -> AsyncIterator[jobs.DownloadArtifactResponse]:
        yield jobs.DownloadArtifactResponse(chunk=b"new!")

    gateway = Gateway()
    gateway.DownloadArtifact = download
    async with serving(gateway) as client:
        with pytest.raises(CorruptObjectError):
            await client.download_artifact(JOB.job_id, entry("report.json", b"other"), tmp_path / "report.json")
        assert (tmp_path / "report.json").read_text() == "old"
        await client.download_artifact(JOB.job_id, entry("report.json", b"new!"), tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == "new!"


async def test_a_job_whose_reply_was_lost_is_asked_for_again_under_the_same_id() -> None:
    seen: list[str] = []

    async def create(request: jobs.CreateJobRequest, context: Any) -> jobs.CreateJobResponse:
        seen.append(request.request_id)
        if len(seen) <= 6:  # more often than the channel itself tries
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return jobs.CreateJobResponse(job=convert.job_to_proto(JOB))

    gateway = Gateway()
    gateway.CreateJob = create
    async with serving(gateway) as client:
        job = await client.create_job(JobKind.REWARD_TRAINING, SPEC, request_id="r1")
    assert job.job_id == JOB.job_id
    assert seen == ["r1"] * 7


async def test_a_job_that_may_have_been_taken_unheard_is_named() -> None:
    async def create(request: jobs.CreateJobRequest, context: Any) -> jobs.CreateJobResponse:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        raise AssertionError

    gateway = Gateway()
    gateway.CreateJob = create
    async with serving(gateway) as client:
        with pytest.raises(
            UnavailableError, match=f"should the job have been taken all the same, it is {job_id_of('r1')}"
        ):
            await client.create_job(JobKind.REWARD_TRAINING, SPEC, request_id="r1")


async def test_a_slow_answer_is_a_deadline_error_that_names_the_gateway() -> None:
    async def sleep(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    gateway = Gateway()
    gateway.GetJob = sleep
    async with serving(gateway, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceededError, match=client.target):
            await client.get_job(JOB.job_id)


async def test_who_is_patient_waits_for_a_gateway_that_is_away() -> None:
    seen: list[str] = []

    async def get(request: jobs.GetJobRequest, context: Any) -> jobs.GetJobResponse:
        seen.append(request.job_id)
        if len(seen) <= 6:  # more often than the channel itself tries
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return jobs.GetJobResponse(job=convert.job_to_proto(JOB))

    gateway = Gateway()
    gateway.GetJob = get
    async with serving(gateway) as client:
        assert (await client.get_job(JOB.job_id, is_patient=True)).job_id == JOB.job_id
        seen.clear()
        with pytest.raises(UnavailableError):
            await client.get_job(JOB.job_id)


async def test_a_watch_goes_on_after_its_last_event_when_the_connection_is_lost() -> None:
    cursors: list[str] = []
    events = [JobProgress(step=step, total_steps=3, metrics={"loss": 0.5}) for step in (1, 2, 3)]
    stream = [*(Event(str(number), 1.0, event) for number, event in enumerate(events, start=1))]
    stream.append(Event("4", 2.0, StateChange(JobState.SUCCEEDED, 1)))

    async def watch(request: jobs.WatchJobRequest, context: Any) -> AsyncIterator[jobs.WatchJobResponse]:
        cursors.append(request.cursor)
        first = int(request.cursor or 0)
        for event in stream[first : first + 2]:
            yield jobs.WatchJobResponse(event=convert.event_to_proto(event))
        if len(cursors) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if len(cursors) == 2:
            await context.abort(grpc.StatusCode.CANCELLED, "server is going away")

    gateway = Gateway()
    gateway.WatchJob = watch
    async with serving(gateway) as client:
        seen = [event async for event in client.watch_job(JOB.job_id)]
    assert seen == stream
    assert cursors == ["", "2", "4"]


async def test_a_watch_comes_back_when_a_full_gateway_said() -> None:
    asked = []

    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            code, text, trailers = to_status(OverloadedError("full", 0.7), request_id="r")
            await context.abort(code, text, trailers)
        if len(asked) == 3:
            code, text, trailers = to_status(OverloadedError("never"), request_id="r")
            await context.abort(code, text, trailers)
        event = Event("1-0", 0.0, StateChange(JobState.SUCCEEDED, 1))
        yield jobs.WatchJobResponse(event=convert.event_to_proto(event))

    gateway = Gateway()
    gateway.WatchJob = watch
    async with serving(gateway) as client:
        assert [event.cursor async for event in client.watch_job(JOB.job_id)] == ["1-0"]
        assert asked[1] - asked[0] >= 0.7
        with pytest.raises(OverloadedError, match="never"):  # without a hint, waiting cannot help
            _ = [event async for event in client.watch_job(JOB.job_id)]


async def test_a_watch_of_no_job_ends_at_once() -> None:
    async def watch(request: Any, context: Any) -> AsyncIterator[Any]:
        code, text, trailers = to_status(NotFoundError("there is no job"), request_id="r")
        await context.abort(code, text, trailers)
        yield

    gateway = Gateway()
    gateway.WatchJob = watch
    async with serving(gateway) as client:
        with pytest.raises(NotFoundError, match="there is no job"):
            _ = [event async for event in client.watch_job(JOB.job_id)]


async def test_a_watch_gives_up_when_the_gateway_stays_away(unused_tcp_port: int) -> None:
    async with GatewayClient(f"127.0.0.1:{unused_tcp_port}", token=None, outage_s=0.0) as client:
        with pytest.raises(UnavailableError, match="no madpo gateway"):
            _ = [event async for event in client.watch_job(JOB.job_id)]


async def test_nobody_at_the_port_is_said_in_one_friendly_line(unused_tcp_port: int) -> None:
    async with GatewayClient(f"127.0.0.1:{unused_tcp_port}", token=None) as client:
        with pytest.raises(UnavailableError) as refused:
            await client.list_jobs()
    expected = f"no madpo gateway at 127.0.0.1:{unused_tcp_port}; start one with `madpo up` or set MADPO_SERVER"
    assert str(refused.value) == expected


async def test_what_the_gateway_says_of_others_is_not_taken_for_its_own_absence() -> None:
    async def fail(request: Any, context: Any) -> Any:
        error = UnavailableError("the job queue does not answer: connection refused")
        code, text, trailers = to_status(error, request_id="r")
        await context.abort(code, text, trailers)

    gateway = Gateway()
    gateway.GetJob = fail
    async with serving(gateway) as client:
        with pytest.raises(UnavailableError, match=r"^the job queue does not answer"):
            await client.get_job(JOB.job_id)


async def test_cancelling_the_caller_cancels_the_call() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(request: Any, context: Any) -> Any:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    gateway = Gateway()
    gateway.GetModel = hang
    async with serving(gateway) as client:
        task: asyncio.Task[Awaitable[Model]] = asyncio.create_task(client.get_model(MODEL_ID))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), 10)
