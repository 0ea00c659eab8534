"""Objects whose name ends with the SHA-256 of their content: verified whenever they are read.

They stay plain files that anybody can open, and a second writer of other content cannot touch them. What version 0.1.0
stored under plain names is read as it is.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from madpo.errors import CorruptObjectError
from madpo.ports import ObjectStore

_BUFFER_BYTES = 1 << 20
_NAME = re.compile(r".*-([0-9a-f]{64})\.[A-Za-z0-9]+")


def sha256_of(data: bytes) -> str:
    """In hex, as keys take it."""
    return hashlib.sha256(data).hexdigest()


def named_sha256(key: str) -> str | None:
    """What a key says of its object's content; None where it says nothing."""
    match = _NAME.fullmatch(key)
    return match[1] if match else None


def get_verified(store: ObjectStore, key: str) -> bytes:
    """The bytes of an object. Raises NotFoundError, and CorruptObjectError where its name says something else."""
    data = store.get(key)
    _check(key, sha256_of(data), named_sha256(key))
    return data


def get_file_verified(store: ObjectStore, key: str, path: Path) -> None:
    """Copy an object to a local file; raises as `get_verified` does."""
    sha256 = store.get_file(key, path)
    try:
        _check(key, sha256, named_sha256(key))
    except CorruptObjectError:
        path.unlink()
        raise


@contextmanager
def open_verified(store: ObjectStore, key: str, sha256: str | None) -> Iterator[BinaryIO]:
    """An object as a stream, whose end raises CorruptObjectError where the bytes before it were others.

    Args:
        store: Where it is.
        key: Which.
        sha256: What its content must have, in hex; None where nobody knows.
    """
    with store.open_read(key) as stream:
        yield io.BufferedReader(_VerifiedStream(stream, key, sha256), _BUFFER_BYTES)


class _VerifiedStream(io.RawIOBase):
    """Passes a stream on and looks at its digest where it ends."""

    def __init__(self, stream: BinaryIO, key: str, sha256: str | None) -> None:
        self._stream, self._key, self._expected = stream, key, sha256
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._digest.update(data)
        if not data and len(buffer):
            _check(self._key, self._digest.hexdigest(), self._expected)
        buffer[: len(data)] = data
        return len(data)


def _check(key: str, found: str, expected: str | None) -> None:
    if expected not in (None, found):
        raise CorruptObjectError(f"{key} is damaged: its SHA-256 must be {expected}, that of its bytes is {found}")
