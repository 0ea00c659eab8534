"""Local files that appear whole or not at all."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from madpo.errors import OverloadedError

_PIECE_BYTES = 1 << 20


Transfer = Callable[[str, int], Callable[[int], None]]
"""Told that files of so many bytes will be moved; what it returns is told of them as they pass, and may raise."""


def unwatched(name: str, size_bytes: int) -> Callable[[int], None]:
    """A `Transfer` that nobody looks at."""
    return lambda count: None


def copy_stream(source: BinaryIO, target: BinaryIO, passed: Callable[[int], None]) -> str:
    """Copy to the end of the source, and say how many bytes have passed, piece by piece; SHA-256 of all, in hex."""
    digest = hashlib.sha256()
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
        digest.update(piece)
        passed(len(piece))
    return digest.hexdigest()


def read_sha256(source: BinaryIO, passed: Callable[[int], None]) -> str:
    """As `copy_stream`, to nowhere."""
    digest = hashlib.sha256()
    while piece := source.read(_PIECE_BYTES):
        digest.update(piece)
        passed(len(piece))
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, against other processes and other threads alike."""
    with path.open("ab") as file:  # a lock belongs to the open file, so every caller opens its own
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, removed when the block fails.

    Raises:
        OverloadedError: The disk is full.
    """
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OverloadedError(f"no space left on the disk of {path.parent}: free some") from error
        raise


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """As `new_file`, and on disk once the block ends."""
    with new_file(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` once the block ends without error; a power cut may lose it."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    with new_file(temporary) as file:
        yield file
    os.replace(temporary, path)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, durably."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fetch_once(
    directory: Path, fetch: Callable[[Path], object], *, is_whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Fill a cache directory, once for all processes of the host.

    Args:
        directory: What to fill.
        fetch: Writes the files into the directory it is given. When it raises, nothing stays behind.
        is_whole: Whether the directory can be used as it is; else it is filled anew. Without it, when it exists: for
            directories that nobody keeps.
    """
    if is_whole(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.with_name(f".{directory.name}.lock")):
        if not is_whole(directory):
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that died
            if directory.is_dir():
                os.rename(directory, partial)  # whoever has mapped a file of it keeps that
                shutil.rmtree(partial)
            partial.mkdir()
            try:
                fetch(partial)
                _sync_files(partial)
                os.rename(partial, directory)
                sync_directory(directory.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return directory


def _sync_files(directory: Path) -> None:
    """Make all that is below a directory survive a power cut."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(parent))
