"""A JSON array of objects, alone or as `{"data": [...]}`, one element at a time.

The elements are cut out of the bytes by their brackets and strings, then parsed like lines of JSON Lines: so one row is
in memory at a time, however long, and the checks (a key twice, depth, size) are the same for both. A parser that
gives events, such as ijson's, holds a string of any length and keeps the last of two equal keys.
"""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from madpo.data.files.json_lines import BOM
from madpo.data.files.json_text import parse_json, too_large
from madpo.data.files.limits import ReadLimits
from madpo.data.raw_row import refuse
from madpo.errors import InvalidArgumentError, InvalidPairError

_READ_BYTES = 64 * 1024
_START = re.compile(rb'\s*(?:\{\s*"data"\s*:\s*)?\[')
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, the start of one that ends in a later piece, or a mark between values."""


def starts_array(head: bytes) -> bool:
    """Whether a file that begins so holds an array of this module's shapes."""
    return _START.match(head.removeprefix(BOM)) is not None


def read_json_array(file: BinaryIO, limits: ReadLimits, before: int) -> Iterator[tuple[int, Any]]:
    """Elements by their place, from 1; one that cannot be used comes as the InvalidPairError it is.

    Raises:
        InvalidArgumentError: The place of the elements is lost: brackets do not match, the end is missing.
    """
    for row, text in enumerate(_elements(file, limits.max_row_bytes, before), start=before + 1):
        try:
            if len(text) > limits.max_row_bytes:
                refuse(row, "", too_large(limits.max_row_bytes, "max_row_bytes"))
            yield row, parse_json(text, row, limits)
        except InvalidPairError as error:
            yield row, error


def _elements(file: BinaryIO, limit_bytes: int, before: int) -> Iterator[bytes]:
    """The bytes of each element."""
    head = file.read(_READ_BYTES).removeprefix(BOM)
    start = _START.match(head)
    if start is None:
        raise InvalidArgumentError(
            'the file is no JSON array: it must begin with "[", or with {"data": [; one object a line is JSON Lines '
            "(format jsonl)"
        )
    is_wrapped = b"{" in start[0]
    splitter = _Splitter(file, head[start.end() :], limit_bytes, before)
    yield from splitter.elements()
    rest = splitter.rest().strip()
    if rest != (b"}" if is_wrapped else b""):
        after = 'fields beside "data"' if is_wrapped else "something"
        raise InvalidArgumentError(f"the file has {after} after the array of rows: {rest[:40]!r}")


class _Splitter:
    """Finds where elements end in a stream that is past the array's opening bracket."""

    def __init__(self, file: BinaryIO, buffer: bytes, limit_bytes: int, before: int) -> None:
        self._file, self._buffer, self._limit_bytes = file, buffer, limit_bytes
        self._begin = self._position = 0
        self._row = before + 1

    def elements(self) -> Iterator[bytes]:
        """Each element's bytes; ends behind the closing bracket."""
        closing: list[bytes] = []
        after_comma = False
        while True:
            mark, start = self._next_token()
            if mark in (b"[", b"{"):
                closing.append(b"]" if mark == b"[" else b"}")
            elif closing and mark in (b"]", b"}"):
                if closing.pop() != mark:
                    self._refuse(f"has a {mark.decode()} that closes nothing")
            elif mark == b"}":
                self._refuse("has a } that closes nothing")
            elif not closing and mark in (b",", b"]"):
                element = self._buffer[self._begin : start]
                self._begin = self._position
                if element.strip():
                    yield element
                    self._row += 1
                elif mark == b"," or after_comma:
                    self._refuse("is missing: a comma has nothing before or after it")
                after_comma = mark == b","
                if mark == b"]":
                    return

    def rest(self) -> bytes:
        """What comes after the array; only its beginning when it is long."""
        return (self._buffer[self._begin :] + self._file.read(_READ_BYTES))[:_READ_BYTES]

    def _next_token(self) -> tuple[bytes, int]:
        """A token and where it starts in the buffer; a string counts as one, whole."""
        while (token := _TOKEN.search(self._buffer, self._position)) is None or token[0] == b'"':
            # Nothing in what is left, or a string that goes on: keep the element that has begun, and read on.
            self._position = (len(self._buffer) if token is None else token.start()) - self._begin
            self._buffer, self._begin = self._buffer[self._begin :], 0
            if len(self._buffer) > self._limit_bytes:
                self._refuse(too_large(self._limit_bytes, "max_row_bytes"))
            more = self._file.read(_READ_BYTES)
            if not more:
                self._refuse("is cut off: the file ends before the array does")
            self._buffer += more
        self._position = token.end()
        return token[0], token.start()

    def _refuse(self, reason: str) -> NoReturn:
        field = f"row {self._row}"
        raise InvalidArgumentError.in_field(field, reason)
