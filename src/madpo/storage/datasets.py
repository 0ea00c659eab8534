"""Datasets in the object store, named by their content.

Rows are kept as Parquet, in the columns of `dataset_columns`. All but the number of the row is part of the content.
"""

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.bundle import Manifest
from madpo.storage.dataset_columns import ROW_TYPES, SCHEMA, decode_row, encode_row, with_all_columns
from madpo.storage.files import Transfer, unwatched
from madpo.storage.listing import list_readable, pass_over
from madpo.storage.withdrawals import Withdrawal, store_again, withdraw
from madpo.types import Dataset, DatasetForm, DatasetKind, DatasetRow, FileEntry, StoreFinding
from madpo.types.columns import OPTIONAL

_PART_ROWS = 50_000
_PART_BYTES = 64 << 20
_GROUP_BYTES = 8 << 20
_READ_ROWS = 1_000
_PLAIN, _WITH_TOOLS = "plain", "with_tools"


class DatasetStore:
    """Writes, describes and reads datasets."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def write(
        self,
        rows: Iterable[DatasetRow],
        *,
        kind: DatasetKind,
        display_name: str,
        scratch: Path,
        forms: Callable[[], Sequence[DatasetForm]] = tuple,
    ) -> tuple[Dataset, bool]:
        """Store rows as a dataset; the same rows in the same order give the same dataset.

        Rows are streamed: memory holds a row group of about 8 MiB of text. Whatever `rows` raises
        goes through, and nothing is stored.

        Args:
            rows: The rows, all of `kind`.
            kind: What they are.
            display_name: A label for people; that of the first upload stays.
            scratch: Local directory for the parts; emptied again.
            forms: Says, once the rows are through, which forms they had.

        Returns:
            The stored dataset with the forms of these rows, and whether it is new.

        Raises:
            InvalidArgumentError: There are no rows.
            InvalidPairError: A row is of another kind; names it.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            content = _write_parts(rows, kind, Path(directory))
            if content.rows == 0:
                raise InvalidArgumentError("the dataset has no rows")
            dataset_id = f"dataset-{content.digest.hexdigest()[:32]}"
            prefix = keys.dataset(dataset_id)
            description = {
                "display_name": display_name,
                "kind": kind.value,
                "rows": content.rows,
                "columns": [name for name in OPTIONAL if content.present[name] == content.rows],
                "first_rows": content.first_rows,
                "first_chats": content.first_chats,
                "first_text": content.first_text,
                "forms": [asdict(form) for form in forms()],
            }
            manifest, created = store_again(self._store, prefix, Path(directory), metadata=description)
            return replace(_dataset(dataset_id, manifest), forms=tuple(forms())), created

    def get(self, dataset_id: str) -> Dataset:
        """Describe a dataset. Raises NotFoundError, CorruptObjectError and UnknownFormatError."""
        return _dataset(dataset_id, self._manifest(dataset_id))

    def first_chat(self, dataset_id: str, *, tools: bool) -> int | None:
        """Number of the first row that is of messages with tools, or of messages without; None where there is none.

        Of what version 0.1.0 stored only the first row is known.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: Its first part, where that is asked, does not match its digest.
        """
        manifest = self._manifest(dataset_id)
        first_chats = manifest.metadata.get("first_chats")
        if first_chats is None:
            first_chats = {}
            _note_chat(next(self._read(dataset_id, manifest, 0)), first_chats)
        number: int | None = first_chats.get(_WITH_TOOLS if tools else _PLAIN)
        return number

    def first_text(self, dataset_id: str) -> int | None:
        """Number of the first row that is of text; None where there is none. Raises what `first_chat` does.

        Of what was stored before this was noted only the first row is known.
        """
        manifest = self._manifest(dataset_id)
        if "first_text" in manifest.metadata:
            number: int | None = manifest.metadata["first_text"]
            return number
        first = next(self._read(dataset_id, manifest, 0))
        return first.row if isinstance(first.prompt, str) else None

    def last_stored(self, dataset_id: str) -> float:
        """When the same rows were uploaded last, in seconds since the epoch. Raises NotFoundError."""
        return self._manifest(dataset_id).stored_time

    def list(
        self,
        *,
        page_size: int,
        page_token: str = "",
        on_unreadable: Callable[[StoreFinding], object] = pass_over,
    ) -> tuple[list[Dataset], str]:
        """A page, the one uploaded last first; see `list_readable`."""
        return list_readable(
            self._store,
            keys.DATASETS,
            self.get,
            page_size=page_size,
            page_token=page_token,
            on_unreadable=on_unreadable,
        )

    def withdraw(self, dataset_id: str, *, stored_time: float | None) -> Withdrawal:
        """Take a dataset out of sight, before it is removed, with the token ids made of it, or put back.

        Args:
            dataset_id: Which.
            stored_time: What `last_stored` said when this was decided; None where its manifest was damaged.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: It was uploaded again since, or is being removed already.
        """
        tokens = keys.dataset_tokens(dataset_id)
        return withdraw(self._store, keys.dataset(dataset_id), stored_time=stored_time, along=[tokens])

    def delete(self, dataset_id: str) -> None:
        """Remove a dataset whoever needs it, and the token ids made of it. Raises NotFoundError."""
        self.withdraw(dataset_id, stored_time=self.last_stored(dataset_id)).remove()

    def read(self, dataset_id: str, *, first: int = 0) -> Iterator[DatasetRow]:
        """The rows in order, each part verified before its first row is given.

        Args:
            dataset_id: Which.
            first: Rows to pass over.

        Raises:
            NotFoundError: There is no such dataset (at the call).
            CorruptObjectError: A part does not match its digest (while iterating).
        """
        return self._read(dataset_id, self._manifest(dataset_id), first)

    def fetch(self, dataset_id: str, directory: Path, *, transfer: Transfer = unwatched) -> None:
        """Write the rows to a local directory as Arrow streams, to be mapped into memory; `decode_row` reads them.

        Args:
            dataset_id: Which.
            directory: Where to.
            transfer: Told of the bytes of the stored parts as they pass; may end it by raising.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: A part does not match its digest.
        """
        manifest = self._manifest(dataset_id)
        passed = transfer(f"fetching {dataset_id}", manifest.size_bytes)
        for number, file in enumerate(manifest.files):
            path = directory / f"part-{number:05d}.arrow"
            with self._part(dataset_id, file) as part, pa.ipc.new_stream(path, SCHEMA) as stream:
                rows = max(1, part.metadata.num_rows)
                for batch in part.iter_batches(_READ_ROWS):
                    stream.write_batch(with_all_columns(batch))
                    passed(file.size_bytes * batch.num_rows // rows)

    def read_rows(self, dataset_id: str, numbers: Collection[int]) -> Iterator[DatasetRow]:
        """The rows of some numbers, in order; only the parts that hold any are read, each verified.

        Raises:
            NotFoundError: There is no such dataset (at the call), or a number is of no row (at the end).
            CorruptObjectError: A part does not match its digest (while iterating).
        """
        return self._read_rows(dataset_id, self._manifest(dataset_id), set(numbers))

    def _read(self, dataset_id: str, manifest: Manifest, first: int) -> Iterator[DatasetRow]:
        kind = DatasetKind(manifest.metadata["kind"])
        for file in manifest.files:
            with self._part(dataset_id, file) as part:
                for batch in part.iter_batches(_READ_ROWS):
                    passed_over = min(first, batch.num_rows)
                    first -= passed_over
                    yield from (decode_row(columns, kind) for columns in batch.slice(passed_over).to_pylist())

    def _read_rows(self, dataset_id: str, manifest: Manifest, missing: set[int]) -> Iterator[DatasetRow]:
        kind, numbers = DatasetKind(manifest.metadata["kind"]), pa.array(sorted(missing), pa.int64())
        first_rows = [*manifest.metadata["first_rows"], math.inf]
        for file, (first, end) in zip(manifest.files, pairwise(first_rows), strict=True):
            if any(first <= number < end for number in missing):
                with self._part(dataset_id, file) as part:
                    for batch in part.iter_batches(_READ_ROWS):
                        found = batch.filter(pc.is_in(batch["row"], numbers)).to_pylist()
                        missing.difference_update(columns["row"] for columns in found)
                        yield from (decode_row(columns, kind) for columns in found)
        if missing:
            raise NotFoundError(f"{dataset_id} has no row {min(missing)}")

    @contextmanager
    def _part(self, dataset_id: str, file: FileEntry) -> Iterator[pq.ParquetFile]:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "part"
            bundle.fetch_file(self._store, keys.dataset(dataset_id), file, path)
            with pq.ParquetFile(path) as part:
                yield part

    def _manifest(self, dataset_id: str) -> Manifest:
        try:
            return bundle.read_manifest(self._store, keys.dataset(dataset_id))
        except NotFoundError as error:
            raise NotFoundError(f"no dataset {dataset_id}") from error


@dataclass(slots=True)
class _Content:
    """What was seen of the rows so far."""

    rows: int = 0
    present: Counter[str] = field(default_factory=Counter)
    """Rows that have each optional column."""
    first_rows: list[int] = field(default_factory=list)
    """Number of the first row of each part."""
    first_chats: dict[str, int] = field(default_factory=dict)
    """Numbers of the first row of messages with tools, and of the first without, where there are any."""
    first_text: int | None = None
    """Number of the first row of text."""
    digest: Any = field(default_factory=hashlib.sha256)


def _note_chat(row: DatasetRow, first_chats: dict[str, int]) -> None:
    if not isinstance(row.prompt, str):
        first_chats.setdefault(_WITH_TOOLS if row.options.tools else _PLAIN, row.row)


def _write_parts(rows: Iterable[DatasetRow], kind: DatasetKind, directory: Path) -> _Content:
    content = _Content()
    with closing(_PartWriter(directory, content.first_rows)) as parts:
        for row in rows:
            if not isinstance(row, ROW_TYPES[kind]):
                raise InvalidPairError(
                    f"row {row.row} is not a {kind.value} row like the others",
                    [FieldViolation(f"row {row.row}", f"expected a {kind.value} row")],
                )
            columns = encode_row(row)
            content.rows += 1
            _note_chat(row, content.first_chats)
            if content.first_text is None and isinstance(row.prompt, str):
                content.first_text = row.row
            content.present.update(name for name in OPTIONAL if columns.get(name) is not None)
            identity = {name: value for name, value in columns.items() if name != "row"}
            content.digest.update(documents.encode([kind.value, identity]) + b"\n")
            parts.add(columns)
    return content


class _PartWriter:
    """Writes rows as parts of a bounded size, each in row groups of a bounded size: that is what is in memory.

    Args:
        directory: Where to.
        first_rows: Gets the number of each part's first row.
    """

    def __init__(self, directory: Path, first_rows: list[int]) -> None:
        self._directory, self._first_rows = directory, first_rows
        self._part: pq.ParquetWriter | None = None
        self._part_rows = self._part_bytes = self._group_bytes = 0
        self._group: list[dict[str, Any]] = []
        self._last_row = 0

    def add(self, columns: dict[str, Any]) -> None:
        """Append a row. The pairs of one row of the file stay together, so that a number is in one part."""
        row = columns["row"]
        is_full = self._part_rows >= _PART_ROWS or self._part_bytes >= _PART_BYTES
        if is_full and (row == 0 or row != self._last_row):
            self.close()
        if self._part is None:
            path = self._directory / f"part-{len(self._first_rows):05d}.parquet"
            self._part = pq.ParquetWriter(path, SCHEMA, compression="zstd")
            self._first_rows.append(row)
        size_bytes = sum(map(_text_size, columns.values()))
        self._group.append(columns)
        self._group_bytes += size_bytes
        self._part_bytes += size_bytes
        self._part_rows += 1
        self._last_row = row
        if self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """End the part."""
        if self._part is not None:
            self._flush()
            self._part.close()
        self._part = None
        self._part_rows = self._part_bytes = 0

    def _flush(self) -> None:
        if self._part is not None and self._group:
            self._part.write_table(pa.Table.from_pylist(self._group, schema=SCHEMA))
        self._group, self._group_bytes = [], 0


def _text_size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_text_size, value))
    return len(value) if isinstance(value, str) else 0


def _dataset(dataset_id: str, manifest: Manifest) -> Dataset:
    description = manifest.metadata
    with documents.reading(f"{keys.dataset(dataset_id)}/{keys.MANIFEST}"):
        forms = [DatasetForm(**documents.known_fields(DatasetForm, form)) for form in description.get("forms", ())]
        return Dataset(
            dataset_id=dataset_id,
            display_name=description["display_name"],
            kind=DatasetKind(description["kind"]),
            rows=description["rows"],
            size_bytes=manifest.size_bytes,
            create_time=manifest.create_time,
            columns=tuple(description["columns"]),
            forms=tuple(forms),
        )
