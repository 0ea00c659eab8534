"""Uploads of datasets that break off: the bytes that arrived are not sent again, and nothing stays behind."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr

from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, UnavailableError
from madpo.rpc.channel import CHUNK_BYTES, call_metadata
from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.server import RunningServer
from madpo.rpc.status import from_rpc_error
from madpo.rpc.transfer import OutgoingFiles
from madpo.storage.open import open_store
from madpo.v1 import dataset_service_pb2 as pb
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.turns import TurnsBySize
from madpo_gateway.uploads import Upload, UploadResult, Uploads
from tests.integration.gateway.service import eventually, stored_keys

pytestmark = pytest.mark.data

TOKEN = "a-token-of-this-test"


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, redis_namespace: str) -> GatewaySettings:
    return GatewaySettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        token=SecretStr(TOKEN),
        scratch=tmp_path / "scratch",
        grace_s=0,
    )


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """About 12 MiB."""
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(12_000):
            row = {"prompt": f"{number}?", "chosen": f"{number:x}" * 200, "rejected": "no"}
            file.write(json.dumps(row | {"chosen": row["chosen"][:1000]}) + "\n")
    return path


@asynccontextmanager
async def serving(settings: GatewaySettings) -> AsyncIterator[tuple[int, CollectorRegistry]]:
    registry = CollectorRegistry()
    server = RunningServer(GatewayService(settings, registry), settings, token=TOKEN, registry=registry)
    async with server:
        yield server.port, registry


class Link:
    """A connection between client and gateway that can be cut; it counts what the client sends.

    Args:
        port: Of the gateway.
        cut_after_bytes: Every connection is cut after so many bytes from the client, the first `cuts` of them.
    """

    def __init__(self, port: int, *, cut_after_bytes: int = 0, cuts: int = 0) -> None:
        self._gateway_port, self._cut_after_bytes, self._cuts = port, cut_after_bytes, cuts
        self.sent_bytes = self.cut = 0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._gateway_port)
        except OSError:  # just as the gateway itself would
            writer.transport.abort()
            return
        sides = asyncio.ensure_future(self._send(reader, forth)), asyncio.ensure_future(self._answer(back, writer))
        await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        for side in sides:
            side.cancel()
        await asyncio.gather(*sides, return_exceptions=True)
        for end in (writer, forth):
            end.transport.abort()

    async def _send(self, client: asyncio.StreamReader, gateway: asyncio.StreamWriter) -> None:
        left_bytes = self._cut_after_bytes if self.cut < self._cuts else sys.maxsize
        while data := await client.read(65536):
            self.sent_bytes += len(data)
            left_bytes -= len(data)
            gateway.write(data)
            await gateway.drain()
            if left_bytes <= 0:
                self.cut += 1
                return

    async def _answer(self, gateway: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await gateway.read(65536):
            client.write(data)
            await client.drain()


@asynccontextmanager
async def linked(port: int, **options: int) -> AsyncIterator[tuple[Link, GatewayClient]]:
    """A client on the other side of a link."""
    link = Link(port, **options)
    server = await asyncio.start_server(link.connect, "127.0.0.1", 0)
    async with GatewayClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", token=TOKEN) as client:
        yield link, client
    server.close()


def left_over(settings: GatewaySettings) -> list[Path]:
    """Bytes of uploads that are still on disk."""
    return [path for path in settings.scratch.rglob("*") if path.is_file() and path.name != "result.json"]


async def test_a_cut_connection_costs_only_what_had_not_arrived(settings: GatewaySettings, rows_file: Path) -> None:
    size_bytes, told = rows_file.stat().st_size, []
    async with serving(settings) as (port, _), linked(port, cut_after_bytes=size_bytes // 3, cuts=2) as (link, client):
        dataset, created = await client.upload_dataset([rows_file], display_name="", on_bytes=told.append)

    assert (dataset.rows, created, link.cut) == (12_000, True, 2)
    assert sum(told) == size_bytes
    # Beyond the file itself: what was on its way at each cut.
    assert link.sent_bytes < 1.5 * size_bytes
    assert left_over(settings) == []


class Process:
    """The gateway as a process of its own, on one port for all its lives."""

    def __init__(self, settings: GatewaySettings, port: int) -> None:
        secrets = {"token": TOKEN, "redis_url": settings.redis_url.get_secret_value()}
        plain = {"store_url": settings.store_url, "redis_namespace": settings.redis_namespace, "port": str(port)}
        given = {**secrets, **plain, "scratch": str(settings.scratch)}
        self._environment = os.environ | {f"MADPO_GATEWAY_{name.upper()}": value for name, value in given.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "madpo_gateway"], env=self._environment)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def process(settings: GatewaySettings, unused_tcp_port: int) -> Iterator[Process]:
    process = Process(settings, unused_tcp_port)
    process.start()
    yield process
    process.kill()


async def test_a_killed_gateway_goes_on_with_an_upload_after_its_restart(
    settings: GatewaySettings, process: Process, unused_tcp_port: int, rows_file: Path
) -> None:
    size_bytes, told = rows_file.stat().st_size, []

    def kept() -> int:
        return sum(path.stat().st_size for path in left_over(settings))

    async with linked(unused_tcp_port) as (link, client):
        await until_it_answers(client)
        upload = asyncio.ensure_future(client.upload_dataset([rows_file], display_name="", on_bytes=told.append))
        # What the client has sent may still be on its way: go by what the gateway has written.
        while kept() <= size_bytes // 4 and not upload.done():
            await asyncio.sleep(0)
        process.kill()
        kept_bytes = kept()
        process.start()
        dataset, created = await upload

    assert (dataset.rows, created) == (12_000, True)
    assert size_bytes // 4 < kept_bytes < size_bytes
    assert link.sent_bytes < 1.5 * size_bytes
    assert sum(told) == size_bytes
    assert left_over(settings) == []


async def until_it_answers(client: GatewayClient) -> None:
    for _ in range(100):
        try:
            await client.list_datasets()
            return
        except UnavailableError:
            await asyncio.sleep(0.2)


class Sender:
    """Streams of messages made by hand: a header and what follows it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DatasetServiceStub(channel)  # type: ignore[no-untyped-call]
        self._options: dict[str, Any] = {"metadata": call_metadata(TOKEN), "timeout": 30}

    def all(self, *parts: dict[str, Any], **header: Any) -> Any:
        """A stream sent to its end."""
        return self._stub.UploadDataset(list(map(self._message, ({"header": header}, *parts))), **self._options)

    async def begin(self, *parts: dict[str, Any], **header: Any) -> Any:
        """A stream that stays open."""
        call = self._stub.UploadDataset(**self._options)
        for part in ({"header": header}, *parts):
            await call.write(self._message(part))
        return call

    def get(self, upload_id: str) -> Any:
        return self._stub.GetUpload(pb.GetUploadRequest(upload_id=upload_id), **self._options)

    def _message(self, part: dict[str, Any]) -> pb.UploadDatasetRequest:
        if "header" in part:
            files = [pb.UploadFile(**file) for file in part["header"].get("files", ())]
            return pb.UploadDatasetRequest(header=pb.UploadDatasetHeader(**part["header"] | {"files": files}))
        return pb.UploadDatasetRequest(**part)


@asynccontextmanager
async def sending(port: int) -> AsyncIterator[Sender]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Sender(channel)


ID = "0123456789abcdef" * 2
LINE = b'{"prompt": "a"}\n'
TWICE = {"sha256": hashlib.sha256(LINE * 2).hexdigest()}


async def refusal(call: Any) -> MadpoError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def arrived(send: Sender, count: int, upload_id: str = ID) -> None:
    while (await send.get(upload_id)).received_bytes != count:
        await asyncio.sleep(0.01)


async def test_another_client_goes_on_with_the_upload_of_one_that_was_stopped(
    settings: GatewaySettings, rows_file: Path
) -> None:
    outgoing, told = OutgoingFiles.describe([rows_file]), []
    size_bytes = outgoing.files[0].size_bytes
    files = [{"name": rows_file.name, "size_bytes": size_bytes}]
    half = rows_file.read_bytes()[: size_bytes // 2]
    chunks = [{"chunk": half[start : start + CHUNK_BYTES]} for start in range(0, len(half), CHUNK_BYTES)]
    async with serving(settings) as (port, _), sending(port) as send:
        stopped = await send.begin(*chunks, upload_id=outgoing.upload_id, files=files)
        await arrived(send, len(half), outgoing.upload_id)
        stopped.cancel()

        async with GatewayClient(f"127.0.0.1:{port}", token=TOKEN) as client:
            dataset, _ = await client.upload_dataset([rows_file], display_name="", on_bytes=told.append)

    assert dataset.rows == 12_000
    assert told[0] == len(half)
    assert sum(told) == size_bytes


async def test_a_later_stream_takes_an_upload_over(settings: GatewaySettings) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        first = await send.begin({"chunk": LINE}, upload_id=ID)
        await arrived(send, len(LINE))
        stored = await send.all({"chunk": LINE}, TWICE, upload_id=ID, offset=len(LINE))
        await first.write(pb.UploadDatasetRequest(chunk=LINE))

        assert (await first).dataset == stored.dataset
        assert (stored.dataset.rows, stored.created, (await first).created) == (2, True, False)
        assert (await send.get(ID)).result == stored, "for a client that lost the answer"
    assert left_over(settings) == []


async def test_all_that_send_the_same_at_once_get_the_same(settings: GatewaySettings, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"".join(b'{"prompt": "%d", "completion": "x"}\n' % number for number in range(50_000)))
    async with serving(settings) as (port, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(GatewayClient(f"127.0.0.1:{port}", token=TOKEN)) for _ in range(50)]
        async with asyncio.timeout(180):
            stored = await asyncio.gather(*(each.upload_dataset([path], display_name="") for each in clients))

    assert {(dataset.dataset_id, dataset.rows) for dataset, _ in stored} == {(stored[0][0].dataset_id, 50_000)}
    assert sum(created for _, created in stored) == 1
    assert left_over(settings) == []


async def test_all_that_send_a_bad_row_at_once_are_told_of_it(settings: GatewaySettings) -> None:
    sha256 = {"sha256": hashlib.sha256(b"{oops").hexdigest()}
    async with serving(settings) as (port, _), sending(port) as send:
        waiting = []
        for length in range(1, 6):
            waiting.append(await send.begin({"chunk": b"{oops"[:length]}, upload_id=ID))
            await arrived(send, length)
        last = await refusal(send.all({"chunk": b"{oops"}, sha256, upload_id=ID))
        for each in waiting:
            await each.write(pb.UploadDatasetRequest(chunk=b"more"))
        errors = [last, *[await refusal(each) for each in waiting]]

        assert [type(error) for error in errors] == [InvalidArgumentError] * 6
        assert {error.violations[0].field for error in errors} == {"row 1"}
        assert (await send.get(ID)).received_bytes == 0


async def test_one_that_waits_goes_on_where_the_one_it_waited_for_stopped(settings: GatewaySettings) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        first = await send.begin({"chunk": LINE}, upload_id=ID)
        await arrived(send, len(LINE))
        second = await send.begin({"chunk": LINE[:4]}, upload_id=ID, offset=len(LINE))
        await arrived(send, len(LINE) + 4)
        await first.write(pb.UploadDatasetRequest(chunk=LINE))  # comes too late
        second.cancel()

        assert isinstance(await refusal(first), UnavailableError)
        assert (await send.get(ID)).received_bytes == len(LINE) + 4
        rest = await send.all({"chunk": LINE[4:]}, TWICE, upload_id=ID, offset=len(LINE) + 4)
        assert rest.dataset.rows == 2
    assert left_over(settings) == []


async def test_a_stream_that_was_taken_over_spoils_nothing(settings: GatewaySettings) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        first = await send.begin({"chunk": LINE}, upload_id=ID)
        await arrived(send, len(LINE))
        second = await send.begin({"chunk": LINE}, upload_id=ID, offset=len(LINE))
        await arrived(send, 2 * len(LINE))
        await first.write(send._message({"header": {"upload_id": ID}}))  # no message to come here
        assert isinstance(await refusal(first), InvalidArgumentError)
        await second.write(pb.UploadDatasetRequest(**TWICE))
        assert (await second).dataset.rows == 2


async def test_the_offset_of_a_stream_is_at_most_what_is_there(settings: GatewaySettings) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        first = await send.begin({"chunk": LINE + b"not json"}, upload_id=ID)
        await arrived(send, len(LINE) + 8)
        first.cancel()

        beyond = await refusal(send.all(upload_id=ID, offset=len(LINE) + 9))
        again = await send.all({"chunk": LINE}, TWICE, upload_id=ID, offset=len(LINE))

    assert isinstance(beyond, FailedPreconditionError)
    assert "has 24 bytes, not 25" in str(beyond)
    assert again.dataset.rows == 2


@pytest.mark.parametrize(
    ("parts", "header", "field"),
    [
        (({"chunk": b"{oops"}, {"sha256": hashlib.sha256(b"{oops").hexdigest()}), {}, "row 1"),
        (({"chunk": LINE}, {"sha256": "0" * 64}), {}, "sha256"),
        (({"chunk": LINE * 2}, TWICE), {"files": [{"name": "a", "size_bytes": 3}]}, "chunk"),
        (({"chunk": LINE},), {"files": [{"name": "../a", "size_bytes": 3}]}, "header.files[0].name"),
        (({"chunk": LINE},), {"files": [{"name": "a\\b", "size_bytes": 3}]}, "header.files[0].name"),
        (({"chunk": LINE},), {"files": [{"name": "a", "size_bytes": -3}]}, "header.files[0].size_bytes"),
        (({"chunk": LINE},), {"files": [{"name": "a", "size_bytes": 2**40}]}, "header.files"),
        (({"chunk": LINE},), {"files": [{"name": "a", "size_bytes": 0}] * 1001}, "header.files"),
    ],
)
async def test_a_refused_upload_leaves_nothing(
    settings: GatewaySettings, parts: tuple[dict[str, Any], ...], header: dict[str, Any], field: str
) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        error = await refusal(send.all(*parts, upload_id=ID, **header))

        assert isinstance(error, InvalidArgumentError)
        assert [violation.field for violation in error.violations] == [field]
        assert (await send.get(ID)).received_bytes == 0
    assert [path for path in settings.scratch.rglob("*") if path.is_file()] == []
    assert stored_keys(open_store(settings)) == []


@pytest.mark.parametrize("upload_id", ["..", "../" * 10 + "0" * 2, "A" * 32, "0" * 33, "0" * 32 + "\n"])
async def test_an_upload_id_is_never_a_path(settings: GatewaySettings, upload_id: str) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        errors = [await refusal(send.all(upload_id=upload_id)), await refusal(send.get(upload_id))]

    assert [error.violations[0].field for error in errors] == ["header.upload_id", "upload_id"]


def uploads_of(scratch: Path, unfinished: Path) -> Uploads:
    return Uploads(
        scratch,
        unfinished,
        limit_bytes=100,
        checking=TurnsBySize("checks", at_once=1, waiting=10, large_bytes=100),
        received=Counter("bytes", "", registry=None),
    )


async def test_what_nobody_goes_on_with_is_forgotten_after_a_while(settings: GatewaySettings, tmp_path: Path) -> None:
    async with serving(settings) as (port, _), sending(port) as send:
        call = await send.begin({"chunk": LINE}, upload_id=ID)
        await arrived(send, len(LINE))
        call.cancel()
    uploads = uploads_of(tmp_path, settings.unfinished_uploads)

    assert uploads.expire(ttl_s=60) == 0
    assert uploads.received_bytes(ID) == len(LINE)
    assert uploads.expire(ttl_s=0) == 1
    assert uploads.received_bytes(ID) == 0


def test_the_same_files_have_the_same_upload_id(tmp_path: Path) -> None:
    def upload_id(*contents: bytes) -> str:
        paths = [tmp_path / f"{place}.jsonl" for place in range(len(contents))]
        for path, data in zip(paths, contents, strict=True):
            path.write_bytes(data)
        return OutgoingFiles.describe(paths).upload_id

    ids = [upload_id(*files) for files in ((b"ab",), (b"a", b"b"), (b"ab", b""), (b"b", b"a"))]

    assert len(set(ids)) == 4
    assert upload_id(b"a", b"b") == ids[1]


async def test_a_check_that_nobody_waits_for_ends_and_keeps_the_bytes(tmp_path: Path) -> None:
    uploads = uploads_of(tmp_path / "scratch", tmp_path / "unfinished")
    upload_id, content = "0" * 32, b"two rows"
    checked: list[int] = []
    go_on = threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        go_on.wait(30)
        yield 2

    def store(upload: Upload) -> UploadResult:
        checked.extend(upload.check.watch(rows()))
        return UploadResult("dataset-1", created=True)

    async def messages() -> AsyncIterator[pb.UploadDatasetRequest]:
        yield pb.UploadDatasetRequest(header=pb.UploadDatasetHeader(upload_id=upload_id))
        yield pb.UploadDatasetRequest(chunk=content)
        yield pb.UploadDatasetRequest(sha256=hashlib.sha256(content).hexdigest())

    upload = asyncio.create_task(uploads.receive(messages(), store))
    await eventually(lambda: uploads.checked_rows(upload_id) == 1)
    upload.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await upload

    assert checked == [1]
    assert (uploads.checked_rows(upload_id), uploads.result(upload_id)) == (0, None)
    assert uploads.received_bytes(upload_id) == len(content)
    assert (await uploads.receive(messages(), store)).dataset_id == "dataset-1"
    assert checked == [1, 1, 2]
