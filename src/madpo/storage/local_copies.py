"""Copies of stored objects on this host: made once for all its processes, and removed when nobody has used them long.

Beside a copy `model-1` stand two empty files, which stay: `.model-1.lock`, held while it is made, and `.model-1.used`,
held by every process that uses the copy, whose time is that of the last use. A third, `.model-1.json`, has the size and
the SHA-256 of each file: a process verifies a copy before it first uses it, and one that was damaged is made anew.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from madpo.errors import CorruptObjectError, UnknownFormatError
from madpo.storage import bundle, documents
from madpo.storage.bundle import file_sha256
from madpo.storage.files import fetch_once, replacing
from madpo.types import FileEntry

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 4


class LocalCopies:
    """A directory of copies; those that were asked for are in use until `release`, or until this object is gone.

    Args:
        root: The directory; any number of processes may share it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: dict[str, BinaryIO] = {}
        self._verified: set[str] = set()

    def fetch(self, name: str, fetch: Callable[[Path], object], *, files: Sequence[FileEntry] | None = None) -> Path:
        """A verified copy, made where there is none.

        Args:
            name: Its path below the root.
            fetch: See `fetch_once`.
            files: What it writes and verifies; None where only the result can tell.
        """
        directory = self._root / name
        if name not in self._held:
            directory.parent.mkdir(parents=True, exist_ok=True)
            used = _use_file(directory).open("ab")
            fcntl.flock(used, fcntl.LOCK_SH)  # waits for whoever is removing the copy
            self._held[name] = used
        os.utime(_use_file(directory))
        if name not in self._verified:

            def make(partial: Path) -> None:
                fetch(partial)
                _write_record(directory, bundle.describe(partial) if files is None else files)

            fetch_once(directory, make, is_whole=_is_whole)
            self._verified.add(name)
        return directory

    def release(self) -> None:
        """Say that what was fetched so far is in use no more."""
        for used in self._held.values():
            used.close()
        self._held.clear()
        self._verified.clear()

    def trim(self, *, max_bytes: int, max_age_s: float) -> None:
        """Remove what nobody uses: copies unused for too long, then those unused for longest until the rest fits.

        Args:
            max_bytes: Of all copies; those in use may exceed it.
            max_age_s: Since the last use.
        """
        copies = sorted(_copies(self._root), key=lambda copy: copy.used_time)
        size_bytes, oldest = sum(copy.size_bytes for copy in copies), time.time() - max_age_s
        for copy in copies:
            if (size_bytes > max_bytes or copy.used_time < oldest) and copy.remove():
                size_bytes -= copy.size_bytes
                logger.info("local copy removed", extra={"copy": str(copy.directory), "size_bytes": copy.size_bytes})


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy, or what a process that died has left of one."""

    directory: Path
    size_bytes: int
    used_time: float

    def remove(self) -> bool:
        """Remove it unless somebody uses it; says whether it is gone."""
        partial = self.directory.with_name(f".{self.directory.name}.partial")
        with _use_file(self.directory).open("ab") as used:
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                # Whoever is killed in here leaves no half of a copy under its name.
                os.rename(self.directory, partial)
            _record(self.directory).unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        return not partial.exists()


def _copies(root: Path) -> Iterator[_Copy]:
    for parent, folders, files in os.walk(root):
        locks = {file for file in files if file.startswith(".") and file.endswith(".lock")}
        for lock in locks:
            directory = Path(parent, lock.removeprefix(".").removesuffix(".lock"))
            partial = f".{directory.name}.partial"
            size_bytes = _size(directory) + _size(directory.with_name(partial))
            used = _use_file(directory)
            known = used if used.exists() else Path(parent, lock)  # earlier versions only locked
            if directory.name in folders or partial in folders:
                yield _Copy(directory, size_bytes, known.stat().st_mtime)
            folders[:] = [name for name in folders if name not in (directory.name, partial)]


def _size(directory: Path) -> int:
    sizes = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process is at work there
                sizes += Path(parent, file).lstat().st_size
    return sizes


def _write_record(directory: Path, files: Sequence[FileEntry]) -> None:
    with replacing(_record(directory)) as record:
        record.write(documents.seal({"files": [asdict(file) for file in files]}))


def _is_whole(directory: Path) -> bool:
    """Whether it holds the files of its record and no others, byte for byte; copies of 0.1.0 have no record."""
    if not directory.is_dir():
        return False
    record = _record(directory)
    try:
        body = documents.unseal(record.read_bytes(), key=str(record))
        with documents.reading(str(record)):
            known = [FileEntry(**documents.known_fields(FileEntry, file)) for file in body["files"]]
        files = {file.path: file for file in known}
        sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in _files(directory)}
        if sizes == {name: file.size_bytes for name, file in files.items()}:
            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                digests = dict(zip(files, pool.map(lambda name: file_sha256(directory / name), files), strict=True))
            if digests == {name: file.sha256 for name, file in files.items()}:
                return True
    except (FileNotFoundError, CorruptObjectError, UnknownFormatError):
        pass
    logger.warning("local copy does not match its record, making it anew", extra={"copy": str(directory)})
    return False


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if not path.is_dir())


def _record(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.json")


def _use_file(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.used")
