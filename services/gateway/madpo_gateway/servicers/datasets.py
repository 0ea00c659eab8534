"""DatasetService: files in, checked row by row, kept by content."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from madpo.data.check.check import DatasetCheck
from madpo.data.file_formats import FileFormat, parse_format
from madpo.data.files import read_rows
from madpo.data.records import parse_rows, row_kind
from madpo.errors import FailedPreconditionError
from madpo.jobs import DATASET_ID_PATTERN
from madpo.ports import JobQueue
from madpo.rpc import convert
from madpo.rpc.channel import CHUNK_BYTES, MAX_READ_ROWS
from madpo.storage.datasets import DatasetStore
from madpo.types import (
    Dataset,
    DatasetRow,
    Job,
)
from madpo.v1 import dataset_service_pb2 as pb
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.requests import MAX_PAGE_SIZE, page_size, require_display_name, require_match, violation
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.spool import Spool, run_blocking, scratch_directory

logger = logging.getLogger(__name__)

DATASET_FIELDS = ("dataset_id", "eval_dataset_id", "prompt_dataset_id", "preference_dataset_id")
"""Spec fields that name a dataset."""

_PROGRESS_ROWS = 1_000


class DatasetServicer(DatasetServiceServicer):
    """Serves the datasets of one object store; asks the queue whether one is in use."""

    def __init__(
        self, settings: GatewaySettings, *, datasets: DatasetStore, queue: JobQueue, metrics: GatewayMetrics
    ) -> None:
        self._settings, self._datasets, self._queue, self._metrics = settings, datasets, queue, metrics

    async def UploadDataset(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadDatasetRequest], context: Any
    ) -> pb.UploadDatasetResponse:
        """Spool, check the digest, check every row, store. All or nothing."""
        async with scratch_directory(self._settings.uploads) as directory:
            upload, path = aiter(request_iterator), directory / "upload"
            header = await self._receive_header(upload)
            await self._receive_file(upload, path)
            dataset, created = await run_blocking(
                self._store, path, parse_format(header.format), display_name=header.display_name
            )
        self._metrics.stored.labels("dataset").inc(created)
        logger.info("dataset uploaded", extra={"dataset_id": dataset.dataset_id, "rows": dataset.rows, "new": created})
        return pb.UploadDatasetResponse(dataset=convert.dataset_to_proto(dataset), created=created)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:  # noqa: N802
        """One dataset."""
        dataset = await asyncio.to_thread(self._datasets.get, _dataset_id(request.dataset_id))
        return pb.GetDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:  # noqa: N802
        """A page of datasets."""
        datasets, token = await asyncio.to_thread(
            self._datasets.list, page_size=page_size(request.page_size), page_token=request.page_token
        )
        return pb.ListDatasetsResponse(datasets=map(convert.dataset_to_proto, datasets), next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:  # noqa: N802
        """Remove a dataset no unfinished job needs."""
        dataset_id = _dataset_id(request.dataset_id)
        await asyncio.to_thread(self._datasets.get, dataset_id)
        async for job in self._unfinished_jobs():
            if dataset_id in {job.spec.get(field) for field in DATASET_FIELDS}:
                raise FailedPreconditionError(
                    f"{dataset_id} is used by {job.job_id}, which is {job.state}: cancel it or wait for its end"
                )
        await asyncio.to_thread(self._datasets.delete, dataset_id)
        logger.info("dataset deleted", extra={"dataset_id": dataset_id})
        return pb.DeleteDatasetResponse()

    async def CheckDataset(  # noqa: N802
        self, request: pb.CheckDatasetRequest, context: Any
    ) -> AsyncIterator[pb.CheckDatasetResponse]:
        """Read the rows again and report on them."""
        rows = await asyncio.to_thread(self._datasets.read, _dataset_id(request.dataset_id))
        held_out = None
        if request.held_out_dataset_id:
            held_out_id = require_match(request.held_out_dataset_id, DATASET_ID_PATTERN, field="held_out_dataset_id")
            held_out = await asyncio.to_thread(self._datasets.read, held_out_id)
        with closing(_check_messages(request.dataset_id, rows, held_out)) as messages:
            while (message := await run_blocking(next, messages, None)) is not None:
                yield message

    async def ReadDatasetRows(  # noqa: N802
        self, request: pb.ReadDatasetRowsRequest, context: Any
    ) -> AsyncIterator[pb.ReadDatasetRowsResponse]:
        """Some rows, in messages of about a chunk's size."""
        if len(request.rows) > MAX_READ_ROWS:
            raise violation("rows", f"must be at most {MAX_READ_ROWS} numbers, got {len(request.rows)}")
        rows = await asyncio.to_thread(self._datasets.read_rows, _dataset_id(request.dataset_id), request.rows)
        with closing(_row_messages(rows)) as messages:
            while (message := await run_blocking(next, messages, None)) is not None:
                yield message

    async def _receive_header(self, upload: AsyncIterator[pb.UploadDatasetRequest]) -> pb.UploadDatasetHeader:
        first = await anext(upload, pb.UploadDatasetRequest())
        if first.WhichOneof("part") != "header":
            raise violation("header", "must be the first message of an upload")
        parse_format(first.header.format)
        require_display_name(first.header.display_name, field="header.display_name")
        return first.header

    async def _receive_file(self, upload: AsyncIterator[pb.UploadDatasetRequest], path: Path) -> None:
        limit_bytes, received = self._settings.max_upload_bytes, self._metrics.upload_bytes.labels("dataset")
        spool = Spool(path, limit_bytes=limit_bytes, limit_name="max_upload_bytes", received=received)
        with closing(spool):
            async for message in upload:
                match message.WhichOneof("part"):
                    case "chunk":
                        await spool.write(message.chunk)
                    case "sha256":
                        spool.finish(message.sha256, field="sha256")
                        return
                    case _:
                        raise violation("part", "must be a chunk, or sha256 to end the upload")
        raise violation("sha256", "is missing: the upload ended early")

    def _store(self, path: Path, file_format: FileFormat | None, *, display_name: str) -> tuple[Dataset, bool]:
        rows = parse_rows(read_rows(path, file_format, limits=self._settings.read_limits))
        first = next(rows)
        return self._datasets.write(
            itertools.chain([first], rows),
            kind=row_kind(first),
            display_name=display_name,
            scratch=path.with_name("parts"),
        )

    async def _unfinished_jobs(self) -> AsyncIterator[Job]:
        token = ""
        while True:
            jobs, token = await self._queue.list(page_size=MAX_PAGE_SIZE, page_token=token)
            for job in jobs:
                if not job.state.is_terminal:
                    yield job
            if not token:
                return


def _check_messages(
    dataset_id: str, rows: Iterable[DatasetRow], held_out: Iterable[DatasetRow] | None
) -> Generator[pb.CheckDatasetResponse]:
    with tempfile.TemporaryFile("w+", encoding="ascii") as rows_file:
        check = DatasetCheck(rows_file=rows_file, held_out=held_out)
        for count, _ in enumerate(check.watch(rows), start=1):
            if count % _PROGRESS_ROWS == 0:
                yield pb.CheckDatasetResponse(checked_rows=count)
        yield pb.CheckDatasetResponse(report_json=check.report(dataset_id).to_json())
        rows_file.seek(0)
        while chunk := rows_file.read(CHUNK_BYTES):
            yield pb.CheckDatasetResponse(rows_chunk=chunk.encode())


def _row_messages(rows: Iterable[DatasetRow]) -> Generator[pb.ReadDatasetRowsResponse]:
    message, size_bytes = pb.ReadDatasetRowsResponse(), 0
    for row in rows:
        entry = convert.dataset_row_to_proto(row)
        message.rows.append(entry)
        size_bytes += entry.ByteSize()
        if size_bytes >= CHUNK_BYTES:
            yield message
            message, size_bytes = pb.ReadDatasetRowsResponse(), 0
    if message.rows:
        yield message


def _dataset_id(value: str) -> str:
    return require_match(value, DATASET_ID_PATTERN, field="dataset_id")
