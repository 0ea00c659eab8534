"""The page headers of a Parquet column chunk, read without reading the pages.

What bounds the memory of a reader is the uncompressed size and the number of values in the header of each page. The
footer repeats their sums, but a footer may lie, and the library believes the page. So the headers are walked before a
chunk is read. They are Thrift structs in the compact protocol; see `parquet.thrift` (PageHeader) of the format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_HEADER_BYTES = 64 * 1024
"""Longest page header: statistics may put two values of the column into it."""
_DATA_HEADER, _DATA_HEADER_V2, _DICTIONARY_HEADER = 5, 8, 7
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Page:
    """What a page header says."""

    uncompressed_bytes: int
    values: int
    is_dictionary: bool


def walk_pages(file: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """The pages between two offsets of a file.

    Raises:
        ValueError: A header cannot be read, or a page reaches past the end.
    """
    while start < end:
        file.seek(start)
        header = _Compact(file.read(min(_HEADER_BYTES, end - start)))
        fields = header.struct()
        uncompressed_bytes, compressed_bytes = _number(fields, 2), _number(fields, 3)
        described = next(
            (fields[key] for key in (_DATA_HEADER, _DATA_HEADER_V2, _DICTIONARY_HEADER) if key in fields), {}
        )
        start += header.position + compressed_bytes
        if start > end:
            raise ValueError("a page reaches past its column chunk")
        yield Page(uncompressed_bytes, _number(described, 1), _DICTIONARY_HEADER in fields)


def _number(fields: object, key: int) -> int:
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page header has no size")
    return value


class _Compact:
    """Reads Thrift's compact protocol: structs as field id to value; values of no use here as None."""

    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def struct(self, depth: int = 0) -> dict[int, object]:
        """The fields of the struct at this place."""
        if depth > _MAX_DEPTH:
            raise ValueError("a page header is nested too deep")
        fields: dict[int, object] = {}
        identifier = 0
        while kind := self._byte():
            delta = kind >> 4
            identifier = identifier + delta if delta else self._zigzag()
            fields[identifier] = self._value(kind & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        match kind:
            case 1 | 2:  # a boolean is in its type
                return None
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                self._skip(8)
            case 8:
                self._skip(self._varint())
            case 9 | 10:
                header = self._byte()
                for _ in range(self._varint() if header >> 4 == 15 else header >> 4):
                    self._value(header & 15, depth + 1)
            case 12:
                return self.struct(depth + 1)
            case _:
                raise ValueError(f"a page header has a field of type {kind}")
        return None

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a page header has a number that is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise ValueError("a page header is cut off")
