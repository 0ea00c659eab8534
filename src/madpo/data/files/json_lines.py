"""JSON Lines: one object a line, blank lines skipped but counted."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from madpo.data.files.json_text import parse_json, too_large
from madpo.data.files.limits import ReadLimits
from madpo.data.raw_row import refuse
from madpo.errors import InvalidPairError

BOM = b"\xef\xbb\xbf"


def read_json_lines(file: BinaryIO, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """Rows by line number; a line that cannot be read comes as the InvalidPairError it is."""
    for number, (line, is_whole) in enumerate(lines(file, limits.max_row_bytes), start=1):
        if number == 1:
            line = line.removeprefix(BOM)
        row = before + number
        try:
            if not is_whole:
                refuse(row, "", too_large(limits.max_row_bytes, "max_row_bytes"))
            if line.strip():
                yield row, parse_json(line, row, limits)
        except InvalidPairError as error:
            yield row, error


def lines(file: BinaryIO, limit_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends, each at most `limit_bytes` and a line feed long, and whether that was all of it."""
    while line := file.readline(limit_bytes + 1):
        is_whole = len(line) <= limit_bytes or line.endswith(b"\n")
        while len(line) > limit_bytes and not line.endswith(b"\n"):
            line = file.readline(limit_bytes + 1)
        yield line, is_whole
