"""Compressed files as plain streams, counted while they are read: what a header says of the size is not believed."""

import gzip
import io
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from madpo.data.files.limits import MIB, ReadLimits
from madpo.errors import InvalidArgumentError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
}
_RATIO_GRACE_BYTES = 8 * MIB
"""Output up to here may come from any input: small files of alike rows compress well."""
_MAX_WINDOW_LOG = 25
"""Two to this power is the memory a zstd frame may ask for; what `--ultra -20` and every library's default ask for is
less."""
_COPY_BYTES = 64 * 1024


@contextmanager
def open_plain(path: Path, limits: ReadLimits, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where its first bytes say gzip or zstd.

    Args:
        path: The file.
        limits: Bounds on the decompressed size and its ratio to the compressed one.
        seekable: Decompress to a temporary file, gone at the end, for readers that jump.

    Raises:
        InvalidArgumentError: The file is an archive or compressed in another way; while reading: it is damaged,
            truncated, or past a limit.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_open(path))
        method = _method(file)
        if method is None:
            yield file
            return
        plain: BinaryIO = stack.enter_context(io.BufferedReader(_Decompressed(file, method, limits), _COPY_BYTES))
        if seekable:
            copy: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            while chunk := plain.read(_COPY_BYTES):
                copy.write(chunk)
            copy.seek(0)
            plain = copy
        yield plain


def is_compressed(path: Path) -> bool:
    """Whether `open_plain` decompresses the file. Raises InvalidArgumentError as it does."""
    with _open(path) as file:
        return _method(file) is not None


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from error


def _method(file: BinaryIO) -> str | None:
    start = file.read(8)
    file.seek(0)
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise InvalidArgumentError(f"the file is {what}; give it plain, or compressed with gzip or zstd")
    return next((method for magic, method in _MAGIC.items() if start.startswith(magic)), None)


class _Decompressed(io.RawIOBase):
    """A decompressing reader that counts both sides."""

    def __init__(self, file: BinaryIO, method: str, limits: ReadLimits) -> None:
        self._file, self._method, self._limits = file, method, limits
        self._size_bytes = 0
        self._stream: BinaryIO = (
            gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
            if method == "gzip"
            else zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
        )

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes read so far, decompressed."""
        return self._size_bytes

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
            raise InvalidArgumentError(
                f"the file is not whole {self._method} data: {_reason(error)}; compress and send it again"
            ) from error
        self._size_bytes += len(data)
        self._check()
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _check(self) -> None:
        if self._size_bytes > self._limits.max_decompressed_bytes:
            raise InvalidArgumentError(
                f"the file decompresses to more than max_decompressed_bytes ({self._limits.max_decompressed_bytes}); "
                "split it"
            )
        most = self._file.tell() * self._limits.max_compression_ratio
        if self._size_bytes > max(most, _RATIO_GRACE_BYTES):
            raise InvalidArgumentError(
                f"the file decompresses to more than {self._limits.max_compression_ratio} times its size "
                "(max_compression_ratio); send it uncompressed if that is what it holds"
            )


def _reason(error: Exception) -> str:
    text = str(error)
    if "memory" in text.lower():  # what zstd says of a window past the limit
        return f"it asks for a window of more than {2**_MAX_WINDOW_LOG // MIB} MiB (leave out --long and --ultra)"
    return text[:200] or type(error).__name__
