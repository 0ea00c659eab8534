"""Object store in a directory of this host.

A key is a path below the root. Every write goes to a temporary file first and takes its name under one lock, where its
condition is checked too; readers need no lock. An etag is made of the file's time stamp, size and inode, and the time
stamp is set from the nanosecond clock on every write, since that of many kernels moves only every few milliseconds.
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from madpo.errors import MadpoError, NotFoundError
from madpo.ports import ObjectInfo
from madpo.storage.files import copy_stream, durable_file, locked, make_directory, replacing, sync_directory
from madpo.storage.keys import check_path
from madpo.storage.local_errors import Disk, ObjectFile

_TEMPORARY = ".tmp"  # no key starts with a dot
_LOCK = ".lock"
_ABANDONED_AFTER_S = 24 * 3600.0


class LocalStore:
    """ObjectStore over a local directory, shared by any number of processes of one host."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disk = Disk(root, self._works)

    def check(self) -> None:
        """Make the root where it is missing, and remove what killed writers left a day ago or earlier.

        Raises:
            UnavailableError: The root cannot be used.
        """
        with self._disk.errors():
            make_directory(self._root / _TEMPORARY)
            for file in (self._root / _TEMPORARY).iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > _ABANDONED_AFTER_S:
                        file.unlink()

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError."""
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and their etag. Raises NotFoundError."""
        with self.open_read(key) as file:
            return file.read(), _etag(os.fstat(file.fileno()))

    @contextmanager
    def open_read(self, key: str) -> Iterator[BinaryIO]:
        """The object as a stream; a write meanwhile does not show in it. Raises NotFoundError."""
        path, errors = self._path(key), partial(self._disk.errors, key, reads=True)
        with errors():
            try:
                file = io.BufferedReader(ObjectFile(path, errors))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFoundError(f"no object {key}") from error
        with file:
            yield file

    def put(self, key: str, data: bytes) -> str:
        """Write or overwrite; returns the etag."""
        etag = self._write(key, lambda file: file.write(data), allowed=lambda current: True)
        assert etag is not None
        return etag

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; True when the key holds `data` afterwards."""
        if self._write(key, lambda file: file.write(data), allowed=lambda current: current is None) is not None:
            return True
        with suppress(NotFoundError):
            return self.get(key) == data
        return False

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Overwrite only the version `etag`; returns the new etag, or None when another was found."""
        return self._write(key, lambda file: file.write(data), allowed=lambda current: current == etag)

    def put_file(self, key: str, path: Path) -> str:
        """Write a copy of a local file; returns the etag."""
        with path.open("rb") as source:
            etag = self._write(
                key, lambda file: shutil.copyfileobj(source, file, 1 << 20), allowed=lambda current: True
            )
        assert etag is not None
        return etag

    def get_file(self, key: str, path: Path, *, passed: Callable[[int], None] = lambda count: None) -> str:
        """Copy to a local file, atomically; see `madpo.ports.ObjectStore`."""
        with self.open_read(key) as source, replacing(path) as file:
            return copy_stream(source, file, passed)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's description, or None."""
        with self._disk.errors():
            return _describe(key, self._path(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order."""
        folder = prefix.rpartition("/")[0]
        if folder:
            check_path(folder)
        with self._disk.errors():
            yield from self._walk(folder, prefix)

    def list_names(self, folder: str) -> Iterator[str]:
        """The next parts of the keys below a folder, each once; that of a folder may be of one being emptied."""
        with self._disk.errors():
            try:
                found = [entry.name for entry in os.scandir(self._path(folder)) if not entry.name.startswith(".")]
            except (FileNotFoundError, NotADirectoryError):
                return
        yield from sorted(found)

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""
        path = self._path(key)
        with self._disk.errors(), self._lock():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            sync_directory(path.parent)
            with suppress(OSError):  # the first folder that is not empty ends this
                for parent in path.parents:
                    if parent == self._root:
                        break
                    parent.rmdir()

    def _write(
        self, key: str, fill: Callable[[BinaryIO], object], *, allowed: Callable[[str | None], bool]
    ) -> str | None:
        """Etag of the new version, or None when `allowed` refuses the current version's etag (None: no object)."""
        path = self._path(key)
        with self._disk.errors(key):
            make_directory(self._root / _TEMPORARY)
            temporary = self._root / _TEMPORARY / uuid4().hex
            try:
                with durable_file(temporary) as file:
                    fill(file)
                with self._lock():
                    current = _describe(key, path)
                    if not allowed(current.etag if current else None):
                        return None
                    make_directory(path.parent)
                    now_ns = time.time_ns()
                    os.utime(temporary, ns=(now_ns, now_ns))
                    etag = _etag(temporary.stat())
                    os.replace(temporary, path)
                    sync_directory(path.parent)
                    return etag
            finally:
                temporary.unlink(missing_ok=True)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            entries = [entry for entry in os.scandir(self._root / folder) if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        # With its slash a folder sorts where the keys below it do.
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
        for name in names:
            key = f"{folder}/{name}" if folder else name
            if not key.startswith(prefix):
                continue
            if key.endswith("/"):
                yield from self._walk(key.rstrip("/"), prefix)
            elif info := _describe(key, self._root / key):
                yield info

    def _path(self, key: str) -> Path:
        return self._root / check_path(key)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with locked(self._root / _LOCK):
            yield

    def _works(self) -> bool:
        """Whether a few bytes can be written to the disk, and read again."""
        probe, data = self._root / _TEMPORARY / uuid4().hex, uuid4().bytes
        try:
            with durable_file(probe) as file:
                file.write(data)
            return probe.read_bytes() == data
        except (OSError, MadpoError):
            return False
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def _describe(key: str, path: Path) -> ObjectInfo | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_file():
        return None
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
