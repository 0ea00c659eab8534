"""Uploads between the wire and the store: chunks to scratch files, checked while they arrive."""

import asyncio
import errno
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from prometheus_client import Counter

from madpo.errors import OverloadedError
from madpo.rpc.channel import CHUNK_BYTES
from madpo_gateway.requests import violation

MAX_CHUNK_BYTES = 1024 * 1024

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a worker thread. A cancelled caller still waits for the thread, so its files can be removed after.

    Raises:
        OverloadedError: The scratch disk is full.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await to_the_end(work)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OverloadedError(
            "the gateway's scratch disk is full: send less at a time, or give it more room"
        ) from error


async def to_the_end(work: asyncio.Future[Any]) -> None:
    """Wait until it is done, however often the caller is cancelled: a thread cannot be hurried."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})


@asynccontextmanager
async def scratch_directory(parent: Path) -> AsyncIterator[Path]:
    """A fresh directory, gone at the end whatever happens."""
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        await run_blocking(shutil.rmtree, directory)


def size_of(directory: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


class Spool:
    """One file being received; `finish` says whether it is the one that was announced.

    Args:
        path: Where to write; parents are made.
        limit_bytes: Most it may hold.
        limit_name: What sets the limit, for the error.
        received: Where the bytes are counted.
    """

    def __init__(self, path: Path, *, limit_bytes: int, limit_name: str, received: Counter) -> None:
        self._limit_bytes, self._limit_name, self._received = limit_bytes, limit_name, received
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")

    async def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises InvalidArgumentError past a limit."""
        if len(chunk) > MAX_CHUNK_BYTES:
            raise violation("chunk", f"must be at most {MAX_CHUNK_BYTES} bytes, got {len(chunk)}")
        self.size_bytes += len(chunk)
        self._received.inc(len(chunk))
        if self.size_bytes > self._limit_bytes:
            raise violation("chunk", f"the file is larger than {self._limit_name} ({self._limit_bytes} bytes)")
        await run_blocking(self._append, chunk)

    def close(self) -> None:
        """Let go of the file; again is fine."""
        self._file.close()

    def finish(self, sha256: str, *, field: str) -> None:
        """Close the file. Raises InvalidArgumentError when its digest is another than `sha256`."""
        self._file.close()
        if self._digest.hexdigest() != sha256:
            description = f"the bytes received have digest {self._digest.hexdigest()}, announced was {sha256!r:.70}"
            raise violation(field, description)

    def _append(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._file.write(chunk)


async def stream_chunks(opened: AbstractContextManager[BinaryIO]) -> AsyncIterator[bytes]:
    """The stream's bytes in chunks fit for the wire; opened and read in worker threads."""
    stream = await run_blocking(opened.__enter__)
    try:
        while chunk := await run_blocking(stream.read, CHUNK_BYTES):
            yield chunk
    finally:
        await run_blocking(opened.__exit__, None, None, None)
