"""CSV with a header line: cells are text, but for the columns that are numbers or lists by their name.

    numbers     a cell of `margin` and the like must be a number
    lists       a cell of `responses` and the like must be JSON
    contents    any other cell is text, unless it begins like a list of objects (`[{`): then it must be JSON messages

An empty cell is an absent field. Rows are numbered from 1 behind the header, also where cells hold line ends.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from madpo.data.columns import NUMBER_COLUMNS
from madpo.data.files.json_lines import BOM, lines
from madpo.data.files.json_text import parse_json, too_large
from madpo.data.files.limits import ReadLimits
from madpo.data.raw_row import refuse
from madpo.errors import InvalidArgumentError, InvalidPairError

LISTS = frozenset({"responses", "scores", "chat_template_kwargs"})
_OBJECTS = re.compile(r"\s*\[\s*\{")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_csv(file: BinaryIO, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """Rows behind the header; one that cannot be used comes as the InvalidPairError it is.

    Raises:
        InvalidArgumentError: The header cannot be used, or a quote leaves no telling where rows end.
    """
    text = _Text(file, limits)
    # The module has one limit for the process, below what a row may hold here. It is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_row_bytes))
    reader = csv.reader(text, strict=True)
    header = _header(_next_record(reader, text, "header"), limits)
    row = before
    while (record := _next_record(reader, text, f"row {row + 1}")) is not None:
        if record:
            row += 1
            try:
                yield row, _row(header, record, row, limits)
            except InvalidPairError as error:
                yield row, error


class _Text:
    """The file's lines as text, for the CSV reader; bounds what one record may take."""

    def __init__(self, file: BinaryIO, limits: ReadLimits) -> None:
        self._lines, self._limit_bytes = lines(file, limits.max_row_bytes), limits.max_row_bytes
        self._is_first, self.record_bytes = True, 0

    def __iter__(self) -> "_Text":
        return self

    def __next__(self) -> str:
        line, is_whole = next(self._lines)
        if self._is_first:
            if line.startswith(_UTF16):
                raise InvalidArgumentError("the file is UTF-16: save it as CSV UTF-8")
            line, self._is_first = line.removeprefix(BOM), False
        self.record_bytes += len(line)
        if self.record_bytes > self._limit_bytes or not is_whole:
            raise csv.Error(f"{too_large(self._limit_bytes, 'max_row_bytes')}, or close a quote that is left open")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise csv.Error("is not UTF-8: save the file as UTF-8") from error


def _next_record(reader: Iterator[list[str]], text: _Text, field: str) -> list[str] | None:
    text.record_bytes = 0
    try:
        return next(reader, None)
    except csv.Error as error:
        reason = str(error)
        if not reason.startswith("is "):
            reason = f"is not CSV: {reason}"
        raise InvalidArgumentError.in_field(field, reason) from error


def _header(names: Sequence[str] | None, limits: ReadLimits) -> list[str]:
    if not names or not any(name.strip() for name in names):
        raise InvalidArgumentError("the CSV file has no header: its first line must name the columns")
    if len(names) > limits.max_columns:
        raise InvalidArgumentError(
            f"the CSV file has {len(names)} columns; at most {limits.max_columns} are read (max_columns)"
        )
    names = [name.strip() for name in names]
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise InvalidArgumentError(f"the CSV file has the column {repeated[0]!r:.60} twice: rename or drop one")
    return list(names)


def _row(header: Sequence[str], record: Sequence[str], row: int, limits: ReadLimits) -> dict[str, Any]:
    if len(record) != len(header):
        refuse(row, "", f"has {len(record)} cells, the header has {len(header)}: quote cells that hold commas")
    cells = zip(header, record, strict=True)
    return {column: _value(column, cell, row, limits) for column, cell in cells if cell}


def _value(column: str, cell: str, row: int, limits: ReadLimits) -> Any:
    if len(cell) > limits.max_field_bytes or len(cell.encode()) > limits.max_field_bytes:
        refuse(row, f"{column:.60}", too_large(limits.max_field_bytes, "max_field_bytes"))
    if column in NUMBER_COLUMNS:
        return _number(column, cell, row)
    if column in LISTS or _OBJECTS.match(cell):
        return parse_json(cell.encode(), row, limits, field=column)
    return cell


def _number(column: str, cell: str, row: int) -> float:
    try:
        number = float(cell) if "_" not in cell else None
    except ValueError:
        number = None
    if number is None:
        refuse(row, column, f"must be a number, got {cell!r:.60}")
    if not math.isfinite(number):
        refuse(row, column, f"must be finite, got {number}")
    return number
