"""Async client of the gateway: datasets, models and jobs as `madpo.types` values.

Every wait is bounded: a unary call by `timeout_s`, each chunk of a transfer by the same, and the work the gateway does
after an upload's last byte by `commit_timeout_s`. Everything sent twice is harmless: uploads are named by their content
and jobs by their request id.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import grpc

from madpo import types
from madpo.data.check.report import CheckReport
from madpo.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    MadpoError,
    UnavailableError,
)
from madpo.rpc import convert
from madpo.rpc.channel import MAX_READ_ROWS, TIME_KEY, VERSION_KEY, call_metadata, open_channel
from madpo.rpc.status import from_rpc_error
from madpo.rpc.tls import ClientTls, explain_handshake
from madpo.rpc.transfer import (
    IncomingDirectory,
    IncomingFile,
    OnBytes,
    OutgoingFiles,
    describe_model,
    read_chunks,
)
from madpo.v1 import dataset_service_pb2 as datasets
from madpo.v1 import job_service_pb2 as jobs
from madpo.v1 import model_service_pb2 as models
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo.v1.model_service_pb2_grpc import ModelServiceStub

T = TypeVar("T")

_CREATE_DELAYS_S = (0.0, 0.5, 1.0)
"""Waits before each try at creating a job; every try already covers the channel's own retries."""
_WATCH_STREAM_S = 300.0
"""A watch is reopened at its cursor this often, so that a stream nobody ends cannot hang."""
_RETRY_DELAY_S = 0.5
_NO_CONNECTION = ("connection refused", "failed to connect", "dns resolution failed")
_HUNG_UP = ("failing; last error", "Socket closed")
"""A connection that the other side ended before it was of use."""


class GatewayClient:
    """The three gateway services behind one channel. Use inside one event loop; `close()` it at the end.

    Args:
        target: `host:port` of the gateway.
        token: Bearer token, or None for a gateway that asks for none.
        tls: What to trust; None talks in plain text.
        timeout_s: Longest wait for a unary call, and for each chunk of a transfer.
        commit_timeout_s: Longest wait for the gateway's own work: checking and storing an upload, an import.
        outage_s: How long a watch, or an upload of a dataset, keeps trying to reach a gateway that went away.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None,
        tls: ClientTls | None = None,
        timeout_s: float = 30.0,
        commit_timeout_s: float = 1800.0,
        outage_s: float = 120.0,
    ) -> None:
        self.target = target
        self._metadata = call_metadata(token)
        self._timeout_s, self._commit_timeout_s, self._outage_s = timeout_s, commit_timeout_s, outage_s
        self._tls = tls
        self._channel = open_channel(target, tls=tls)
        self._datasets = DatasetServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._models = ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._jobs = JobServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(grace=None)

    async def __aenter__(self) -> "GatewayClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def server_info(self) -> types.ServerInfo:
        """Version and clock of the gateway, and how long it took to say so."""
        call = self._jobs.ListJobs(jobs.ListJobsRequest(page_size=1), metadata=self._metadata, timeout=self._timeout_s)
        sent_time, start = time.time(), time.monotonic()
        with self._domain_errors():
            await call
            trailers = dict(await call.trailing_metadata())
        round_trip_s = time.monotonic() - start
        server_time = trailers.get(TIME_KEY)
        ahead_s = float(server_time) - (sent_time + round_trip_s / 2) if server_time else None
        return types.ServerInfo(str(trailers.get(VERSION_KEY, "")), ahead_s, round_trip_s)

    # ---- datasets

    async def upload_dataset(
        self,
        paths: Sequence[Path],
        *,
        display_name: str,
        format: str = "",  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: str = "",
        on_bytes: OnBytes | None = None,
    ) -> tuple[types.Dataset, bool]:
        """Upload files of rows as one dataset.

        An upload that breaks off goes on behind the last byte the gateway has, within this call for up to `outage_s`
        without a new byte, and in a later call with the same files.

        Args:
            paths: The files, in the order of their rows.
            display_name: A label for people.
            format: Of all files; "" lets content and names say.
            columns: Our names of columns to the files', where they differ; "" leaves a column unread.
            lists: What becomes of ranked responses; "" refuses more than two.
            on_bytes: Told of the progress.

        Returns:
            The dataset with the forms that were found, and False when the same content was stored before.

        Raises:
            InvalidArgumentError: A row is wrong; names it.
            UnavailableError: The gateway stayed away.
        """
        columns = dict(sorted((columns or {}).items()))
        reading = json.dumps([columns, lists]) if columns or lists else ""
        outgoing = await asyncio.to_thread(OutgoingFiles.describe, paths, reading=reading)
        request = datasets.GetUploadRequest(upload_id=outgoing.upload_id)
        clock = asyncio.get_running_loop().time
        offset = (await self._call(self._datasets.GetUpload, request)).received_bytes
        give_up_at = clock() + self._outage_s
        report = _progress(on_bytes)
        while True:
            header = datasets.UploadDatasetHeader(
                display_name=display_name,
                format=format,
                upload_id=outgoing.upload_id,
                offset=offset,
                files=[datasets.UploadFile(name=file.name, size_bytes=file.size_bytes) for file in outgoing.files],
                columns=columns,
                lists=lists,
            )
            call = self._datasets.UploadDataset(metadata=self._metadata)
            try:
                response = await self._upload(call, _dataset_parts(header, outgoing, report))
                break
            except (UnavailableError, FailedPreconditionError):
                # The latter says that there are fewer bytes now: another client went on with these files meanwhile.
                if clock() > give_up_at:
                    raise
            state = await self._persist(self._datasets.GetUpload, request, give_up_at)
            if state.HasField("result"):
                response = state.result
                break
            if state.received_bytes > offset:
                give_up_at = clock() + self._outage_s
            offset = state.received_bytes
        return convert.dataset_from_proto(response.dataset), response.created

    async def import_dataset(
        self,
        hub_id: str,
        *,
        commit: str,
        files: Sequence[str] = (),
        format: str = "",  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: str = "",
    ) -> tuple[types.Dataset, bool]:
        """Let the gateway fetch files of rows from the hub at a full commit; the rest is as of an upload."""
        request = datasets.ImportDatasetRequest(
            hub_id=hub_id, commit=commit, files=files, format=format, columns=columns, lists=lists
        )
        response = await self._call(self._datasets.ImportDataset, request, timeout_s=self._commit_timeout_s)
        return convert.dataset_from_proto(response.dataset), response.created

    async def get_dataset(self, dataset_id: str) -> types.Dataset:
        """Raises NotFoundError."""
        response = await self._call(self._datasets.GetDataset, datasets.GetDatasetRequest(dataset_id=dataset_id))
        return convert.dataset_from_proto(response.dataset)

    async def list_datasets(self, *, page_size: int = 100, page_token: str = "") -> tuple[list[types.Dataset], str]:
        """One page, with the token of the next ("" at the end)."""
        request = datasets.ListDatasetsRequest(page_size=page_size, page_token=page_token)
        response = await self._call(self._datasets.ListDatasets, request)
        return [convert.dataset_from_proto(dataset) for dataset in response.datasets], response.next_page_token

    async def delete_dataset(self, dataset_id: str) -> None:
        """Raises NotFoundError."""
        await self._call(self._datasets.DeleteDataset, datasets.DeleteDatasetRequest(dataset_id=dataset_id))

    async def check_dataset(
        self,
        dataset_id: str,
        *,
        held_out_dataset_id: str | None = None,
        rows_file: BinaryIO | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> CheckReport:
        """Let the gateway look at the stored rows.

        Args:
            dataset_id: What to look at.
            held_out_dataset_id: Rows whose prompts should not be among them.
            rows_file: Gets a JSON line for each row of each finding.
            on_rows: Told how many rows have been looked at.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: A part of it is damaged.
        """
        request = datasets.CheckDatasetRequest(dataset_id=dataset_id, held_out_dataset_id=held_out_dataset_id or "")
        call = self._datasets.CheckDataset(request, metadata=self._metadata)
        report: CheckReport | None = None
        async for message in self._received(call, timeout_s=self._commit_timeout_s):
            match message.WhichOneof("part"):
                case "checked_rows" if on_rows is not None:
                    on_rows(message.checked_rows)
                case "report_json":
                    report = CheckReport.from_json(message.report_json)
                case "rows_chunk" if rows_file is not None:
                    rows_file.write(message.rows_chunk)
        if report is None:
            raise UnavailableError(f"the gateway at {self.target} ended the check without a report")
        return report

    async def read_dataset_rows(self, dataset_id: str, numbers: Iterable[int]) -> list[types.DatasetRow]:
        """The rows of some numbers, in order, each once. Raises NotFoundError, CorruptObjectError."""
        ordered = sorted(set(numbers))
        rows: list[types.DatasetRow] = []
        for first in range(0, len(ordered), MAX_READ_ROWS):
            request = datasets.ReadDatasetRowsRequest(
                dataset_id=dataset_id, rows=ordered[first : first + MAX_READ_ROWS]
            )
            async for message in self._received(self._datasets.ReadDatasetRows(request, metadata=self._metadata)):
                rows += map(convert.dataset_row_from_proto, message.rows)
        return rows

    # ---- models

    async def upload_model(
        self, directory: Path, *, display_name: str, on_bytes: OnBytes | None = None
    ) -> tuple[types.Model, bool]:
        """Upload the files of a model directory; hidden files stay behind.

        Returns:
            The model, and False when the same content was stored before.

        Raises:
            InvalidArgumentError: Not a directory, or a file the gateway does not take; names it.
        """
        files = await asyncio.to_thread(describe_model, directory)

        async def parts() -> AsyncGenerator[models.UploadModelRequest]:
            header = models.UploadModelHeader(display_name=display_name, file_count=len(files))
            yield models.UploadModelRequest(header=header)
            for entry in files:
                yield models.UploadModelRequest(file=convert.file_to_proto(entry))
                async for chunk in read_chunks(directory / entry.path, on_bytes):
                    yield models.UploadModelRequest(chunk=chunk)

        response = await self._upload(self._models.UploadModel(metadata=self._metadata), parts())
        return convert.model_from_proto(response.model), response.created

    async def import_model(self, hub_id: str, *, commit: str) -> tuple[types.Model, bool]:
        """Let the gateway fetch a model from the hub at a full commit."""
        request = models.ImportModelRequest(hub_id=hub_id, commit=commit)
        response = await self._call(self._models.ImportModel, request, timeout_s=self._commit_timeout_s)
        return convert.model_from_proto(response.model), response.created

    async def get_model(self, model_id: str) -> types.Model:
        """Raises NotFoundError."""
        response = await self._call(self._models.GetModel, models.GetModelRequest(model_id=model_id))
        return convert.model_from_proto(response.model)

    async def list_models(self, *, page_size: int = 100, page_token: str = "") -> tuple[list[types.Model], str]:
        """One page, with the token of the next ("" at the end)."""
        request = models.ListModelsRequest(page_size=page_size, page_token=page_token)
        response = await self._call(self._models.ListModels, request)
        return [convert.model_from_proto(model) for model in response.models], response.next_page_token

    async def list_checkpoints(self, job_id: str) -> list[types.Checkpoint]:
        """Newest first. Raises NotFoundError."""
        response = await self._call(self._models.ListCheckpoints, models.ListCheckpointsRequest(job_id=job_id))
        return [convert.checkpoint_from_proto(checkpoint) for checkpoint in response.checkpoints]

    async def download_model(
        self,
        directory: Path,
        *,
        model_id: str | None = None,
        job_id: str | None = None,
        step: int | None = None,
        weights: bool = True,
        on_bytes: OnBytes | None = None,
    ) -> Path:
        """Download a model, a job's final model or one of its checkpoints; every file's digest is verified.

        The directory appears whole or not at all.

        Args:
            directory: Must not exist, or be empty.
            model_id: This, or `job_id`.
            job_id: A training job.
            step: With `job_id`: that checkpoint.
            weights: False leaves them out: the tokenizer and the configuration alone.
            on_bytes: Told of the progress.

        Raises:
            NotFoundError: No such model, job or checkpoint.
            CorruptObjectError: A file arrived damaged; names it.
        """
        request = models.DownloadModelRequest(model_id=model_id, job_id=job_id, step=step, without_weights=not weights)
        with IncomingDirectory(directory) as incoming:
            async for message in self._received(self._models.DownloadModel(request, metadata=self._metadata)):
                if message.WhichOneof("part") == "file":
                    incoming.begin(convert.file_from_proto(message.file))
                else:
                    incoming.write(message.chunk)
                    if on_bytes is not None:
                        on_bytes(len(message.chunk))
            incoming.commit()
        return directory

    # ---- jobs

    async def create_job(
        self,
        kind: types.JobKind,
        spec: Mapping[str, Any],
        *,
        request_id: str,
        display_name: str = "",
        depends_on: Sequence[str] = (),
    ) -> types.Job:
        """Create a job; tried again under the same `request_id` while the gateway cannot be reached.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
            AlreadyExistsError: The id was used for another spec.
        """
        request = jobs.CreateJobRequest(
            request_id=request_id,
            spec=convert.spec_to_proto(kind, spec),
            display_name=display_name,
            depends_on=depends_on,
        )
        failure: UnavailableError | None = None
        for delay_s in _CREATE_DELAYS_S:
            await asyncio.sleep(delay_s)
            try:
                return convert.job_from_proto((await self._call(self._jobs.CreateJob, request)).job)
            except UnavailableError as error:
                failure = error
        assert failure is not None
        raise failure

    async def get_job(self, job_id: str) -> types.Job:
        """Raises NotFoundError."""
        return convert.job_from_proto((await self._call(self._jobs.GetJob, jobs.GetJobRequest(job_id=job_id))).job)

    async def list_jobs(self, *, page_size: int = 100, page_token: str = "") -> tuple[list[types.Job], str]:
        """One page, newest first, with the token of the next ("" at the end)."""
        request = jobs.ListJobsRequest(page_size=page_size, page_token=page_token)
        response = await self._call(self._jobs.ListJobs, request)
        return [convert.job_from_proto(job) for job in response.jobs], response.next_page_token

    async def cancel_job(self, job_id: str) -> types.Job:
        """Cancel, or ask a running job to stop. Raises NotFoundError."""
        response = await self._call(self._jobs.CancelJob, jobs.CancelJobRequest(job_id=job_id))
        return convert.job_from_proto(response.job)

    async def watch_job(self, job_id: str, *, cursor: str = "") -> AsyncGenerator[types.JobEvent]:
        """Events after the cursor, then live ones; goes on at its place when the connection is lost.

        Ends once the job is over.

        Raises:
            NotFoundError: No such job.
            UnavailableError: The gateway stayed away for `outage_s`.
        """
        clock = asyncio.get_running_loop().time
        lost_at: float | None = None
        while True:
            request = jobs.WatchJobRequest(job_id=job_id, cursor=cursor)
            stream = self._jobs.WatchJob(request, metadata=self._metadata, timeout=_WATCH_STREAM_S)
            try:
                with self._domain_errors():
                    async for response in stream:
                        lost_at = None
                        event = convert.event_from_proto(response.event)
                        cursor = event.cursor
                        yield event
                return
            except DeadlineExceededError:
                lost_at = None
            except UnavailableError:
                lost_at = clock() if lost_at is None else lost_at
                if clock() - lost_at > self._outage_s:
                    raise
                await asyncio.sleep(_RETRY_DELAY_S)
            finally:
                stream.cancel()

    async def list_artifacts(self, job_id: str) -> list[types.FileEntry]:
        """Reports, plots and ledgers of a job. Raises NotFoundError."""
        response = await self._call(self._jobs.ListArtifacts, jobs.ListArtifactsRequest(job_id=job_id))
        return [types.FileEntry(file.name, file.size_bytes, file.sha256) for file in response.artifacts]

    async def download_artifact(self, job_id: str, entry: types.FileEntry, path: Path) -> Path:
        """Download one artifact, verified, atomically. Raises NotFoundError, CorruptObjectError."""
        request = jobs.DownloadArtifactRequest(job_id=job_id, name=entry.path)
        with IncomingFile(path, entry) as incoming:
            async for message in self._received(self._jobs.DownloadArtifact(request, metadata=self._metadata)):
                incoming.write(message.chunk)
            incoming.commit()
        return path

    async def download_ledger_parts(self, job_id: str) -> list[bytes]:
        """Parquet files with the ledger's rows up to the newest checkpoint, in order. Raises NotFoundError."""
        request = jobs.DownloadLedgerPartsRequest(job_id=job_id)
        parts, part = [], bytearray()
        async for message in self._received(self._jobs.DownloadLedgerParts(request, metadata=self._metadata)):
            part += message.chunk
            if message.ends_file:
                parts.append(bytes(part))
                part.clear()
        return parts

    # ---- calls

    async def _call(
        self, method: Callable[..., Awaitable[Any]], request: object, *, timeout_s: float | None = None
    ) -> Any:
        with self._domain_errors():
            return await method(request, metadata=self._metadata, timeout=timeout_s or self._timeout_s)

    async def _persist(self, method: Callable[..., Awaitable[Any]], request: object, give_up_at: float) -> Any:
        """The answer of a gateway that is away for a while."""
        while True:
            await asyncio.sleep(_RETRY_DELAY_S)
            try:
                return await self._call(method, request)
            except UnavailableError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise

    async def _upload(self, call: Any, parts: AsyncGenerator[Any]) -> Any:
        """Send the parts, each within `timeout_s`; then wait for the gateway to store them."""
        ending = _Ending(call)
        try:
            with self._domain_errors():
                try:
                    async for part in parts:
                        await asyncio.wait_for(call.write(part), self._timeout_s)
                    await call.done_writing()
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    pass  # The gateway has refused the rest already; the call's status says why.
                try:
                    return await asyncio.wait_for(call, self._commit_timeout_s)
                except grpc.aio.AioRpcError as error:
                    raise ending.unmasked(error) from error
        finally:
            call.cancel()
            await parts.aclose()

    async def _received(self, call: Any, *, timeout_s: float | None = None) -> AsyncGenerator[Any]:
        """The messages of a download, each within `timeout_s`; by default the client's."""
        timeout_s = timeout_s or self._timeout_s
        try:
            with self._domain_errors():
                while (message := await asyncio.wait_for(call.read(), timeout_s)) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                    yield message
        finally:
            call.cancel()

    @contextmanager
    def _domain_errors(self) -> Iterator[None]:
        """Turn what a failed call raises into an error of ours."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        except TimeoutError as error:
            if isinstance(error, MadpoError):
                raise
            raise DeadlineExceededError(f"the transfer with the gateway at {self.target} stalled") from error
        except asyncio.CancelledError as error:
            # A call that the gateway ended with CANCELLED looks like a cancelled task; only a real one passes.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise UnavailableError(f"the gateway at {self.target} ended the call") from error

    def _explained(self, error: grpc.aio.AioRpcError) -> MadpoError:
        domain = from_rpc_error(error)
        if error.trailing_metadata():
            return domain  # The gateway's own words.
        if isinstance(domain, DeadlineExceededError):
            return DeadlineExceededError(f"the gateway at {self.target} did not answer in time")
        if not isinstance(domain, UnavailableError):
            return domain
        if reason := explain_handshake(str(domain)):
            # Not UnavailableError: waiting and trying again cannot help.
            return FailedPreconditionError(f"no TLS with the gateway at {self.target}: {reason}")
        if all(sign in str(domain) for sign in _HUNG_UP):
            wants = (
                "lets in only clients with a certificate of its own (tls_cert)" if self._tls else "serves TLS (tls_ca)"
            )
            return UnavailableError(f"the gateway at {self.target} hangs up at once: it stops just now, or it {wants}")
        if any(sign in str(domain).lower() for sign in _NO_CONNECTION):
            return UnavailableError(f"no madpo gateway at {self.target}; start one with `madpo up` or set MADPO_SERVER")
        return UnavailableError(f"lost the gateway at {self.target}: {domain}")


def _progress(on_bytes: OnBytes | None) -> Callable[[int], None]:
    """Takes how far a transfer is, and tells of what is new in it."""
    reached = 0

    def report(position: int) -> None:
        nonlocal reached
        if on_bytes is not None and position > reached:
            on_bytes(position - reached)
        reached = max(reached, position)

    return report


async def _dataset_parts(
    header: datasets.UploadDatasetHeader, outgoing: OutgoingFiles, report: Callable[[int], None]
) -> AsyncGenerator[datasets.UploadDatasetRequest]:
    """The messages of an upload from the header's offset on."""
    yield datasets.UploadDatasetRequest(header=header)
    position = header.offset
    report(position)
    async with aclosing(outgoing.chunks(position)) as chunks:
        async for chunk in chunks:
            yield datasets.UploadDatasetRequest(chunk=chunk)
            position += len(chunk)
            report(position)
    yield datasets.UploadDatasetRequest(sha256=outgoing.sha256)


class _Ending:
    """The status that the server ended a call with.

    A write that fails because the server has ended the call replaces the status by an internal error of gRPC's own,
    before or after the server's status comes in (grpc/grpc#36066). So the status is noted as it is set first.
    """

    def __init__(self, call: Any) -> None:
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def unmasked(self, last: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The server's status, given the one the call had at the end."""
        return self._first if self._first is not None and last.details() == "Internal error from Core" else last

    def _note(self, call: Any) -> None:
        if self._first is None:
            initial, trailers = _known(call.initial_metadata()), _known(call.trailing_metadata())
            self._first = grpc.aio.AioRpcError(_known(call.code()), initial, trailers, _known(call.details()), None)


def _known(value: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        value.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a call that is done knows its status")
