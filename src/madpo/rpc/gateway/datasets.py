"""Datasets of a gateway: uploads that go on where they broke off, rows, checks."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from madpo import types
from madpo.data.check.report import CheckReport
from madpo.errors import FailedPreconditionError, MadpoError, UnavailableError
from madpo.rpc import convert
from madpo.rpc.channel import MAX_READ_ROWS
from madpo.rpc.gateway.calls import GatewayCalls
from madpo.rpc.transfer import OnBytes, OutgoingFiles
from madpo.v1 import dataset_service_pb2 as datasets
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub

_ROWS_PERIOD_S = 0.5


class DatasetCalls(GatewayCalls):
    """The calls of `DatasetService`."""

    @cached_property
    def _datasets(self) -> DatasetServiceStub:
        return DatasetServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def upload_dataset(
        self,
        paths: Sequence[Path],
        *,
        display_name: str,
        format: str = "",  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: str = "",
        on_bytes: OnBytes | None = None,
        on_rows: Callable[[int], None] | None = None,
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
            on_rows: Told how many rows the gateway has checked, once it has all bytes.

        Returns:
            The dataset with the forms that were found, and False when the same content was stored before.

        Raises:
            InvalidArgumentError: A row is wrong; names it.
            UnavailableError: The gateway stayed away.
        """
        columns = dict(sorted((columns or {}).items()))
        reading = json.dumps([columns, lists, format]) if columns or lists or format else ""
        outgoing = await asyncio.to_thread(OutgoingFiles.describe, paths, reading=reading)
        request = datasets.GetUploadRequest(upload_id=outgoing.upload_id)
        clock = asyncio.get_running_loop().time
        offset = (await self.call(self._datasets.GetUpload, request)).received_bytes
        give_up_at = clock() + self.outage_s
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
            call = self._datasets.UploadDataset(metadata=self.metadata)
            try:
                async with self._checked_rows(request, on_rows):
                    response = await self.upload(call, _dataset_parts(header, outgoing, report))
                break
            except (UnavailableError, FailedPreconditionError):
                # The latter says that there are fewer bytes now: another client went on with these files meanwhile.
                if clock() > give_up_at:
                    raise
            state = await self.persist(self._datasets.GetUpload, request, give_up_at)
            if state.HasField("result"):
                response = state.result
                break
            if state.received_bytes > offset:
                give_up_at = clock() + self.outage_s
            offset = state.received_bytes
        return convert.dataset_from_proto(response.dataset), response.created

    @asynccontextmanager
    async def _checked_rows(
        self, request: datasets.GetUploadRequest, on_rows: Callable[[int], None] | None
    ) -> AsyncIterator[None]:
        """Ask from time to time how many rows of an upload were checked, and pass it on."""

        async def ask(on_rows: Callable[[int], None]) -> None:
            while True:
                await asyncio.sleep(_ROWS_PERIOD_S)
                with suppress(MadpoError):
                    state = await self.call(self._datasets.GetUpload, request)
                    if state.checked_rows:
                        on_rows(state.checked_rows)

        asking = None if on_rows is None else asyncio.create_task(ask(on_rows))
        try:
            yield
        finally:
            if asking is not None:
                asking.cancel()

    async def import_dataset(
        self,
        hub_id: str,
        *,
        revision: str = "main",
        files: Sequence[str] = (),
        format: str = "",  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: str = "",
    ) -> tuple[types.Dataset, bool, str]:
        """Let the gateway fetch files of rows of a branch, tag or commit from the hub; gives the full commit as well.

        The rest is as of an upload.
        """
        request = datasets.ImportDatasetRequest(
            hub_id=hub_id, revision=revision, files=files, format=format, columns=columns, lists=lists
        )
        response = await self.call(self._datasets.ImportDataset, request, timeout_s=self.commit_timeout_s)
        return convert.dataset_from_proto(response.dataset), response.created, response.commit

    async def get_dataset(self, dataset_id: str) -> types.Dataset:
        """Raises NotFoundError."""
        response = await self.call(self._datasets.GetDataset, datasets.GetDatasetRequest(dataset_id=dataset_id))
        return convert.dataset_from_proto(response.dataset)

    async def list_datasets(
        self,
        *,
        page_size: int = 100,
        page_token: str = "",
        on_unreadable: Callable[[types.StoreFinding], object] = lambda finding: None,
    ) -> tuple[list[types.Dataset], str]:
        """One page, with the token of the next ("" at the end); `on_unreadable` is told of those that are left out."""
        request = datasets.ListDatasetsRequest(page_size=page_size, page_token=page_token)
        response = await self.call(self._datasets.ListDatasets, request)
        for finding in response.unreadable:
            on_unreadable(convert.finding_from_proto(finding))
        return [convert.dataset_from_proto(dataset) for dataset in response.datasets], response.next_page_token

    async def delete_dataset(self, dataset_id: str) -> None:
        """Raises NotFoundError."""
        await self.call(self._datasets.DeleteDataset, datasets.DeleteDatasetRequest(dataset_id=dataset_id))

    async def check_dataset(
        self,
        dataset_id: str,
        *,
        eval_dataset_id: str | None = None,
        rows_file: BinaryIO | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> CheckReport:
        """Let the gateway look at the stored rows.

        Args:
            dataset_id: What to look at.
            eval_dataset_id: Rows whose prompts should not be among them.
            rows_file: Gets a JSON line for each row of each finding.
            on_rows: Told how many rows have been looked at.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: A part of it is damaged.
        """
        request = datasets.CheckDatasetRequest(dataset_id=dataset_id, eval_dataset_id=eval_dataset_id or "")
        call = self._datasets.CheckDataset(request, metadata=self.metadata)
        report: CheckReport | None = None
        async for message in self.received(call, timeout_s=self.commit_timeout_s):
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
            async for message in self.received(self._datasets.ReadDatasetRows(request, metadata=self.metadata)):
                rows += map(convert.dataset_row_from_proto, message.rows)
        return rows

    async def download_dataset(self, dataset_id: str) -> AsyncGenerator[types.DatasetRow]:
        """All rows, in order. Raises NotFoundError, CorruptObjectError."""
        request = datasets.DownloadDatasetRequest(dataset_id=dataset_id)
        async for message in self.received(self._datasets.DownloadDataset(request, metadata=self.metadata)):
            for row in message.rows:
                yield convert.dataset_row_from_proto(row)


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
