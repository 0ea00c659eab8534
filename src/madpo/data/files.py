"""Files of rows, read as a stream in bounded memory: JSON lines and Parquet."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.data.records import COLUMNS, refuse
from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError

FileFormat = Literal["jsonl", "parquet"]

MAX_ROW_BYTES = 1024 * 1024
"""Largest row: some 250 thousand tokens, far above what a pair can train on, and small enough to hold many."""

MAX_ROW_GROUP_BYTES = 256 * 1024 * 1024
"""Largest Parquet row group, uncompressed: it bounds what reading one takes."""

MAX_DEPTH = 32
"""Deepest nesting of a JSON row."""

_BATCH_ROWS = 256
_BOM = b"\xef\xbb\xbf"
_TOO_LARGE = f"is larger than {MAX_ROW_BYTES} bytes"


def parse_format(name: str) -> FileFormat:
    """The format of this name. Raises InvalidArgumentError for an unknown one."""
    for known in get_args(FileFormat):
        if name == known:
            return known  # type: ignore[no-any-return]
    message = f"must be one of {', '.join(get_args(FileFormat))}, got {name!r:.60}"
    raise InvalidArgumentError(f"format {message}", [FieldViolation("header.format", message)])


def read_rows(path: Path, format: FileFormat) -> Iterator[tuple[int, Any]]:  # noqa: A002
    """Rows with their numbers, from 1. In JSON lines the number is the line's: blank lines are skipped but counted.

    The iterator outlives a bad row: after an InvalidPairError, `next` goes on with the row behind it.

    Raises:
        InvalidPairError: A row that cannot be read (not UTF-8, not JSON, a repeated key, too large, too deep).
        InvalidArgumentError: The file as a whole cannot be read.
    """
    rows = _read_json_lines(path) if format == "jsonl" else _read_parquet(path)
    # Generators end when they raise; `map` does not.
    return map(_deliver, rows)


def _deliver(item: tuple[int, Any]) -> tuple[int, Any]:
    if isinstance(item[1], InvalidPairError):
        raise item[1]
    return item


def _read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        row = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            row += 1
            is_too_large = len(line) > MAX_ROW_BYTES and not line.endswith(b"\n")
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES + 1)
            if row == 1:
                line = line.removeprefix(_BOM)
            try:
                if is_too_large:
                    refuse(row, "", _TOO_LARGE)
                if line.strip():
                    yield row, _parse_json(line, row)
            except InvalidPairError as error:
                yield row, error


def _parse_json(line: bytes, row: int) -> Any:
    def refuse_constant(name: str) -> NoReturn:
        refuse(row, "", f"holds {name}, which is not JSON")

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, item in pairs:
            if key in value:
                refuse(row, "", f"has the key {key!r:.60} twice")
            value[key] = item
        return value

    try:
        value = json.loads(line.decode(), object_pairs_hook=unique, parse_constant=refuse_constant)
    except InvalidPairError:
        raise
    except UnicodeDecodeError as error:
        refuse(row, "", f"is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        refuse(row, "", f"is not JSON: {error.msg} at character {error.colno}")
    except RecursionError:
        refuse(row, "", f"is nested deeper than {MAX_DEPTH}")
    except ValueError:
        refuse(row, "", "holds a number with too many digits")
    if _is_deeper(value, MAX_DEPTH):
        refuse(row, "", f"is nested deeper than {MAX_DEPTH}")
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return limit == 0 or any(_is_deeper(item, limit - 1) for item in value)


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            columns = _known_columns(file)
            row = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                batch.validate(full=True)
                is_small = batch.nbytes <= MAX_ROW_BYTES
                for index, value in enumerate(batch.to_pylist()):
                    row += 1
                    if is_small or batch.slice(index, 1).nbytes <= MAX_ROW_BYTES:
                        yield row, value
                    else:
                        field = f"row {row}"
                        yield row, InvalidPairError(f"{field}: {_TOO_LARGE}", [FieldViolation(field, _TOO_LARGE)])
    except (pa.ArrowException, OSError) as error:
        raise InvalidArgumentError(f"the file is not readable Parquet: {error!s:.200}") from error


def _known_columns(file: Any) -> list[str]:
    names = file.schema_arrow.names
    known = [name for name in names if name in COLUMNS]
    if len(set(known)) < len(known):
        raise InvalidArgumentError(f"the Parquet file has a column twice: {', '.join(known)}")
    if not known:
        listed = ", ".join(map(repr, names[:20]))
        raise InvalidArgumentError(f"the Parquet file has none of the columns {', '.join(COLUMNS)}; it has {listed}")
    for index in range(file.num_row_groups):
        size_bytes = file.metadata.row_group(index).total_byte_size
        if size_bytes > MAX_ROW_GROUP_BYTES:
            raise InvalidArgumentError(
                f"row group {index} of the Parquet file holds {size_bytes} bytes; write groups of at most "
                f"{MAX_ROW_GROUP_BYTES} (`row_group_size=`)"
            )
    return known
