"""DatasetService: files in, checked row by row, kept by content."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from madpo.data.check.check import DatasetCheck
from madpo.data.file_formats import parse_format
from madpo.data.files.reading import DataFile, FileRows
from madpo.data.ranking import parse_list_rule
from madpo.data.records import RowReader, parse_rows, row_kind
from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import DATASET_ID_PATTERN
from madpo.rpc import convert
from madpo.rpc.channel import CHUNK_BYTES, MAX_READ_ROWS
from madpo.storage.datasets import DatasetStore
from madpo.types import Dataset, DatasetRow, StoreFinding
from madpo.v1 import dataset_service_pb2 as pb
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from madpo_gateway.deletion import Deletion
from madpo_gateway.hub import HUB_ID_PATTERN, revision_of
from madpo_gateway.imports import HubImports, Wanted
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.requests import page_size, require_match, violation
from madpo_gateway.row_check import RowCheck
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.spool import run_blocking, scratch_directory
from madpo_gateway.turns import TurnsBySize
from madpo_gateway.uploads import Upload, UploadResult, Uploads

logger = logging.getLogger(__name__)

_PROGRESS_ROWS = 1_000


class DatasetServicer(DatasetServiceServicer):
    """Serves the datasets of one object store."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        datasets: DatasetStore,
        uploads: Uploads,
        checking: TurnsBySize,
        imports: HubImports,
        deletion: Deletion,
        metrics: GatewayMetrics,
    ) -> None:
        self._settings, self._datasets, self._uploads = settings, datasets, uploads
        self._checking, self._imports = checking, imports
        self._deletion, self._metrics = deletion, metrics

    async def UploadDataset(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadDatasetRequest], context: Any
    ) -> pb.UploadDatasetResponse:
        """Spool, check the digest, check every row, store. All or nothing."""
        result = await self._uploads.receive(aiter(request_iterator), self._store_upload)
        return await self._uploaded(result)

    async def ImportDataset(self, request: pb.ImportDatasetRequest, context: Any) -> pb.ImportDatasetResponse:  # noqa: N802
        """Fetch files of a revision from the hub and store their rows."""
        hub_id = require_match(request.hub_id, HUB_ID_PATTERN, field="hub_id")
        revision, file_format = revision_of(request), parse_format(request.format)
        async with scratch_directory(self._settings.uploads) as directory:
            wanted = Wanted(
                "dataset",
                hub_id,
                revision,
                str(directory),
                limit_bytes=self._settings.max_upload_bytes,
                patterns=list(request.files),
                endpoint=self._settings.hub_endpoint,
            )
            fetched = await self._imports.fetch(wanted)
            header = pb.UploadDatasetHeader(
                display_name=f"{hub_id}@{fetched.commit[:12]}", columns=request.columns, lists=request.lists
            )
            files = [DataFile(Path(path), name, file_format) for name, path in fetched.files]
            check = RowCheck()
            async with self._checking.turn(sum(file.path.stat().st_size for file in files)):
                result = await check.run(self._store, header, files, check.watch)
        stored = await self._uploaded(result)
        return pb.ImportDatasetResponse(dataset=stored.dataset, created=stored.created, commit=fetched.commit)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:  # noqa: N802
        """How far an upload has come, or what it became."""
        # In this order: the result is there before the bytes are gone.
        received_bytes = self._uploads.received_bytes(request.upload_id)
        result = self._uploads.result(request.upload_id)
        if result is not None:
            with suppress(NotFoundError):  # deleted since
                return pb.GetUploadResponse(result=await self._uploaded(result))
        checked_rows = self._uploads.checked_rows(request.upload_id)
        return pb.GetUploadResponse(received_bytes=received_bytes, checked_rows=checked_rows)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:  # noqa: N802
        """One dataset."""
        dataset = await asyncio.to_thread(self._datasets.get, _dataset_id(request.dataset_id))
        return pb.GetDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:  # noqa: N802
        """A page of datasets; those that cannot be read apart."""
        unreadable: list[StoreFinding] = []
        datasets, token = await asyncio.to_thread(
            self._datasets.list,
            page_size=page_size(request.page_size),
            page_token=request.page_token,
            on_unreadable=unreadable.append,
        )
        return pb.ListDatasetsResponse(
            datasets=map(convert.dataset_to_proto, datasets),
            next_page_token=token,
            unreadable=map(convert.finding_to_proto, unreadable),
        )

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:  # noqa: N802
        """Remove a dataset no unfinished job needs."""
        await self._deletion.dataset(_dataset_id(request.dataset_id))
        return pb.DeleteDatasetResponse()

    async def CheckDataset(  # noqa: N802
        self, request: pb.CheckDatasetRequest, context: Any
    ) -> AsyncIterator[pb.CheckDatasetResponse]:
        """Read the rows again and report on them."""
        rows = await asyncio.to_thread(self._datasets.read, _dataset_id(request.dataset_id))
        held_out = None
        if request.eval_dataset_id and request.held_out_dataset_id:
            raise violation("held_out_dataset_id", "is the old name of eval_dataset_id: give eval_dataset_id alone")
        if held_out_id := request.eval_dataset_id or request.held_out_dataset_id:
            require_match(held_out_id, DATASET_ID_PATTERN, field="eval_dataset_id")
            held_out = await asyncio.to_thread(self._datasets.read, held_out_id)
        dataset = await asyncio.to_thread(self._datasets.get, request.dataset_id)
        with closing(_check_messages(dataset, rows, held_out)) as messages:
            while (message := await self._next(messages)) is not None:
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

    async def DownloadDataset(  # noqa: N802
        self, request: pb.DownloadDatasetRequest, context: Any
    ) -> AsyncIterator[pb.DownloadDatasetResponse]:
        """All rows, in messages of about a chunk's size; each part is verified before its first row is sent."""
        rows = await asyncio.to_thread(self._datasets.read, _dataset_id(request.dataset_id))
        with closing(_row_messages(rows)) as messages:
            while (message := await run_blocking(next, messages, None)) is not None:
                yield pb.DownloadDatasetResponse(rows=message.rows)

    async def _next(self, messages: Iterator[pb.CheckDatasetResponse]) -> pb.CheckDatasetResponse | None:
        async with self._checking.turn(0):  # a thousand rows, then it is another's
            return await run_blocking(next, messages, None)

    async def _uploaded(self, result: UploadResult) -> pb.UploadDatasetResponse:
        """The dataset with the forms of this upload. Raises NotFoundError."""
        dataset = replace(await asyncio.to_thread(self._datasets.get, result.dataset_id), forms=result.forms)
        return pb.UploadDatasetResponse(dataset=convert.dataset_to_proto(dataset), created=result.created)

    def _store_upload(self, upload: Upload) -> UploadResult:
        return self._store(upload.announced.header, upload.data_files, upload.check.watch)

    def _store(
        self,
        header: pb.UploadDatasetHeader,
        files: Sequence[DataFile],
        watch: Callable[[Iterable[DatasetRow]], Iterator[DatasetRow]] = iter,
    ) -> UploadResult:
        reader = RowReader(header.columns, lists=parse_list_rule(header.lists))
        with closing(FileRows(files, self._settings.read_limits)) as numbered:
            try:
                rows = watch(_at_most(self._settings.max_rows, parse_rows(numbered, reader)))
                first = next(rows)
                dataset, created = self._datasets.write(
                    itertools.chain([first], rows),
                    kind=row_kind(first),
                    display_name=header.display_name,
                    scratch=self._settings.uploads,
                    forms=reader.forms,
                )
            except InvalidArgumentError as error:
                raise numbered.explain(error) from error
        self._metrics.stored.labels("dataset").inc(created)
        logger.info(
            "dataset stored",
            extra={
                "dataset_id": dataset.dataset_id,
                "rows": dataset.rows,
                "new": created,
                "forms": [form.name for form in reader.forms()],
            },
        )
        return UploadResult(dataset.dataset_id, created, reader.forms())


def _check_messages(
    dataset: Dataset, rows: Iterable[DatasetRow], held_out: Iterable[DatasetRow] | None
) -> Generator[pb.CheckDatasetResponse]:
    with tempfile.TemporaryFile("w+", encoding="ascii") as rows_file:
        check = DatasetCheck(rows_file=rows_file, held_out=held_out)
        for count, _ in enumerate(check.watch(rows), start=1):
            if count % _PROGRESS_ROWS == 0:
                yield pb.CheckDatasetResponse(checked_rows=count)
        yield pb.CheckDatasetResponse(report_json=check.report(dataset.dataset_id, forms=dataset.forms).to_json())
        rows_file.seek(0)
        while chunk := rows_file.read(CHUNK_BYTES):
            yield pb.CheckDatasetResponse(rows_chunk=chunk.encode())


def _at_most(limit: int, rows: Iterable[DatasetRow]) -> Iterator[DatasetRow]:
    """The rows; a row of a file may be many pairs. Raises InvalidArgumentError when there are more."""
    for count, row in enumerate(rows, start=1):
        if count > limit:
            raise InvalidArgumentError(f"the lists make more than {limit} pairs (max_rows): split the file")
        yield row


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
