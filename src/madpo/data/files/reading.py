"""One or several files of rows as one iterator: format and compression told from the content, rows numbered on."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from madpo.data.file_formats import FileFormat, format_of_name
from madpo.data.files.arrow import read_arrow
from madpo.data.files.arrow_messages import CONTINUATION, FILE_MAGIC
from madpo.data.files.compression import is_compressed, open_plain
from madpo.data.files.csv_table import read_csv
from madpo.data.files.json_array import read_json_array, starts_array
from madpo.data.files.json_lines import BOM, read_json_lines
from madpo.data.files.limits import DEFAULT_LIMITS, ReadLimits
from madpo.data.files.parquet import MAGIC, read_parquet
from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError

Numbered = tuple[int, Any]
Reader = Callable[[BinaryIO, ReadLimits, int], Iterator[Numbered]]

READERS: dict[FileFormat, Reader] = {
    "jsonl": read_json_lines,
    "json": read_json_array,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "csv": read_csv,
}
"""Each takes an open file, the limits and the number of rows before it; an unreadable row is given as its error."""

_SEEKING = ("parquet", "arrow")
_HEAD_BYTES = 64 * 1024
_ROW = re.compile(r"\brow (\d+)")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read. The name is for people and a hint at the format; the format, where given, is not questioned."""

    path: Path
    name: str = ""
    format: FileFormat | None = None


def detect_format(file: DataFile, limits: ReadLimits = DEFAULT_LIMITS) -> FileFormat:
    """The format: as given, as the first bytes say, or, where they may be several, as the name's ending says.

    Raises:
        InvalidArgumentError: Neither says anything, or the file cannot be decompressed.
    """
    if file.format is not None:
        return file.format
    with open_plain(file.path, limits) as plain:
        head = plain.read(_HEAD_BYTES)
    if head.startswith(MAGIC):
        return "parquet"
    if head.startswith((FILE_MAGIC, CONTINUATION)):
        return "arrow"
    hint = format_of_name(file.name)
    if hint == "csv":
        return "csv"
    if starts_array(head):
        return "json"
    if head.removeprefix(BOM).lstrip()[:1] == b"{":
        return "jsonl"
    if hint is not None:
        return hint
    raise InvalidArgumentError(
        f"{file.name or 'the file'} is no Parquet, Arrow or JSON; name its format, one of {', '.join(READERS)}"
    )


def read_rows(
    path: Path,
    format: FileFormat | None = None,  # noqa: A002
    *,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> "FileRows":
    """The rows of one file; see `FileRows`."""
    return FileRows([DataFile(path, path.name, format)], limits)


class FileRows:
    """Rows of files with their numbers, from 1 and on through all files, read in bounded memory.

    In JSON Lines the number is the line's: blank lines are skipped but counted.

    The iterator outlives a bad row: after an InvalidPairError, `next` goes on with the row behind it.

    Args:
        files: Read in this order.
        limits: Bounds on what they may hold.

    Raises:
        InvalidPairError: While iterating: a row that cannot be read (not UTF-8, not JSON, a repeated key, too large,
            too deep).
        InvalidArgumentError: While iterating: a file as a whole cannot be read.
    """

    def __init__(self, files: Sequence[DataFile], limits: ReadLimits = DEFAULT_LIMITS) -> None:
        self._files, self._limits = files, limits
        self._first_rows: list[int] = []
        self._rows = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Numbered:
        number, value = next(self._rows)
        if isinstance(value, InvalidPairError):
            raise value
        return number, value

    def close(self) -> None:
        """Close the file that is open."""
        self._rows.close()  # type: ignore[attr-defined]

    def locate(self, number: int) -> tuple[str, int]:
        """The name of the file that holds the row of this number, and its number in there."""
        place = sum(first <= number for first in self._first_rows) - 1
        return self._files[max(place, 0)].name, number - self._first_rows[place] + 1 if place >= 0 else number

    def explain(self, error: InvalidArgumentError) -> InvalidArgumentError:
        """The error with rows named as they are in their file, where there are several files."""
        if len(self._files) == 1:
            return error

        def local(match: re.Match[str]) -> str:
            name, number = self.locate(int(match[1]))
            return f"{name} row {number}"

        violations = [
            FieldViolation(_ROW.sub(local, violation.field, count=1), violation.description)
            for violation in error.violations
        ]
        return type(error)(_ROW.sub(local, str(error), count=1), violations)

    def _read(self) -> Iterator[Numbered]:
        rows = last = 0
        limits = self._limits
        for file in self._files:
            self._first_rows.append(last + 1)
            try:
                file_format = detect_format(file, limits)
                with open_plain(file.path, limits, seekable=file_format in _SEEKING) as plain:
                    with closing(READERS[file_format](plain, limits, last)) as numbered:  # type: ignore[type-var]
                        for last, value in numbered:
                            rows += 1
                            if rows > limits.max_rows:
                                raise InvalidArgumentError(
                                    f"there are more than {limits.max_rows} rows (max_rows); split them"
                                )
                            yield last, value
                    if is_compressed(file.path):
                        size_bytes = plain.seek(0, 2) if plain.seekable() else plain.tell()
                        left_bytes = limits.max_decompressed_bytes - size_bytes
                        limits = replace(limits, max_decompressed_bytes=left_bytes)
            except InvalidArgumentError as error:
                if len(self._files) == 1 or any(_ROW.match(violation.field) for violation in error.violations):
                    raise
                violations = [
                    FieldViolation(f"{file.name} {each.field}", each.description) for each in error.violations
                ]
                raise InvalidArgumentError(f"{file.name}: {error}", violations) from error
