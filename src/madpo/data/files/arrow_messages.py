"""The messages of an Arrow IPC stream, looked at before the library reads them.

A message says how long its body is and, where buffers are compressed, how long each will be: the library allocates what
it is told. So every message is checked against the file and the limits first. Its metadata is a flatbuffer; see
`Message.fbs` of the format.
"""

import struct
from typing import BinaryIO

from madpo.data.files.limits import MIB, ReadLimits
from madpo.errors import InvalidArgumentError

FILE_MAGIC = b"ARROW1\0\0"
CONTINUATION = b"\xff\xff\xff\xff"
_END = CONTINUATION + bytes(4)
_MAX_METADATA_BYTES = 4 * MIB
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def find_stream(file: BinaryIO, limits: ReadLimits) -> int:
    """Where the stream of messages begins: behind the magic of a file, at the start of a stream.

    A file that is cut between two batches would else be read as a shorter one.

    Raises:
        InvalidArgumentError: A batch is past the limit.
        ValueError: A message is damaged or cut off.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    start = len(FILE_MAGIC) if file.read(len(FILE_MAGIC)) == FILE_MAGIC else 0
    file.seek(start)
    while (frame := file.read(8)) != _END:
        if not frame:
            raise ValueError("it does not say where it ends; it may be cut off, or its writer was not closed")
        if len(frame) < 8 or frame[:4] != CONTINUATION:
            raise ValueError("a message does not begin like one")
        metadata_bytes = int.from_bytes(frame[4:], "little", signed=True)
        if not 0 < metadata_bytes <= _MAX_METADATA_BYTES:
            raise ValueError(f"a message has {metadata_bytes} bytes of metadata")
        metadata = file.read(metadata_bytes)
        if len(metadata) < metadata_bytes:
            raise ValueError("it is cut off")
        try:
            _check(_Table.root(metadata), file, size_bytes, limits)
        except struct.error as error:
            raise ValueError("the metadata of a message is damaged") from error
    if start:
        _check_footer(file, size_bytes)
    return start


def _check_footer(file: BinaryIO, size_bytes: int) -> None:
    """See that a file ends as it should: length of the footer, and the magic again."""
    rest = file.read(_MAX_METADATA_BYTES + len(FILE_MAGIC))
    footer_bytes = int.from_bytes(rest[-10:-6], "little")
    if not rest.endswith(FILE_MAGIC.rstrip(b"\0")) or footer_bytes != len(rest) - 10:
        raise ValueError("it does not end like an Arrow file; it may be cut off")


def _check(message: "_Table", file: BinaryIO, size_bytes: int, limits: ReadLimits) -> None:
    body_start, body_bytes = file.tell(), message.number("<q", 3)
    if body_bytes < 0 or body_start + body_bytes > size_bytes:
        raise ValueError("it is cut off, or a message says it is longer than it is")
    kind = message.number("<B", 1)
    held_bytes = body_bytes
    batch = message.table(2)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(1)
    if kind in (_DICTIONARY_BATCH, _RECORD_BATCH) and batch is not None and batch.table(3) is not None:
        for offset, length in batch.pairs(2):
            if length >= 8:
                file.seek(body_start + offset)
                plain_bytes = int.from_bytes(file.read(8), "little", signed=True)
                held_bytes += max(plain_bytes, 0)
    if held_bytes > limits.max_page_bytes:
        raise InvalidArgumentError(
            f"an Arrow batch takes {held_bytes} bytes, at most {limits.max_page_bytes} are read (max_page_bytes): "
            "write smaller batches (`max_chunksize=`)"
        )
    file.seek(body_start + body_bytes)


class _Table:
    """A table of a flatbuffer: fields by number, absent ones are zero or None."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._vtable = place - self._unpack("<i", place)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def number(self, form: str, field: int) -> int:
        place = self._field(field)
        return self._unpack(form, place) if place is not None else 0

    def table(self, field: int) -> "_Table | None":
        place = self._field(field)
        return _Table(self._data, place + self._unpack("<I", place)) if place is not None else None

    def pairs(self, field: int) -> "list[tuple[int, int]]":
        """A vector of structs of two int64."""
        place = self._field(field)
        if place is None:
            return []
        start = place + self._unpack("<I", place)
        count = self._unpack("<I", start)
        if count > len(self._data) // 16:
            raise ValueError("a message has more buffers than it has room for")
        return [struct.unpack_from("<qq", self._data, start + 4 + 16 * index) for index in range(count)]

    def _field(self, field: int) -> int | None:
        if 4 + 2 * field >= self._unpack("<H", self._vtable):
            return None
        offset = self._unpack("<H", self._vtable + 4 + 2 * field)
        return self._place + offset if offset else None

    def _unpack(self, form: str, place: int) -> int:
        if place < 0:
            raise ValueError("a message refers to what is before it")
        value: int = struct.unpack_from(form, self._data, place)[0]
        return value
