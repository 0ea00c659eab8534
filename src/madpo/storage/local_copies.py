"""Copies of stored objects on this host: made once for all its processes, and removed when nobody has used them long.

Beside a copy `model-1` stand two empty files: `.model-1.lock`, held while it is made, and `.model-1.used`, held by
every process that uses the copy or is about to, whose time is that of the last use; whoever holds it alone may remove
the copy and what stands beside it. A third, `.model-1.json`, has the size and the SHA-256 of each file: a process
verifies a copy before it first uses it, and one that was damaged is made anew.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from madpo.errors import CorruptObjectError, UnknownFormatError
from madpo.storage import bundle, documents
from madpo.storage.files import Transfer, fetch_once, replacing, unwatched
from madpo.types import FileEntry

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 4
_PIECE_BYTES = 1 << 20
_LONG_BYTES = 1 << 30
"""To verify so much takes about a second; nobody need be told of less."""
_TIMES = 100
_BESIDE = re.compile(r"\.(.+)\.(?:lock|used)")


class LocalCopies:
    """A directory of copies; those that were asked for are in use until `release`, or until this object is gone.

    Args:
        root: The directory; any number of processes may share it.
        transfer: Told of copies whose verification takes a while; may end it by raising.
    """

    def __init__(self, root: Path, *, transfer: Transfer = unwatched) -> None:
        self._root, self._transfer = root, transfer
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
            self._held[name] = _hold(_use_file(directory))
        os.utime(_use_file(directory))
        if name not in self._verified:

            def make(partial: Path) -> None:
                fetch(partial)
                _write_record(directory, bundle.describe(partial) if files is None else files)

            fetch_once(directory, make, is_whole=partial(_is_whole, transfer=self._transfer))
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
            is_over = size_bytes > max_bytes or copy.used_time < oldest
            if (is_over or not copy.is_made) and copy.remove(self._root) and copy.is_made:
                size_bytes -= copy.size_bytes
                logger.info("local copy removed", extra={"copy": str(copy.directory), "size_bytes": copy.size_bytes})


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy, what a process that died has left of one, or only what stands beside it."""

    directory: Path
    is_made: bool
    size_bytes: int
    used_time: float

    def remove(self, root: Path) -> bool:
        """Remove it unless somebody uses it, and the folders below the root that are then empty; whether it is gone."""
        partial = _partial(self.directory)
        use_file = _use_file(self.directory)
        try:
            used = use_file.open("ab")
        except FileNotFoundError:  # another process has removed it, and its folder
            return True
        with used:
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not _is_at(used, use_file):  # removed by another process, and perhaps made anew since
                return False
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                # Whoever is killed in here leaves no half of a copy under its name.
                os.rename(self.directory, partial)
            _record(self.directory).unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            if partial.exists():
                return False
            _lock_file(self.directory).unlink(missing_ok=True)
            use_file.unlink()
        _remove_empty(self.directory.parent, root)
        return True


def _copies(root: Path) -> Iterator[_Copy]:
    for parent, folders, files in os.walk(root):
        beside = {match[1] for file in files if (match := _BESIDE.fullmatch(file))}
        for name in beside:
            directory = Path(parent, name)
            partial = _partial(directory)
            is_made = name in folders or partial.name in folders
            known = [path for path in (_use_file(directory), _lock_file(directory)) if path.name in files]
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                # The second where the first is missing: earlier versions only locked.
                used_time = known[0].stat().st_mtime
                yield _Copy(directory, is_made, _size(directory) + _size(partial), used_time)
            folders[:] = [folder for folder in folders if folder not in (name, partial.name)]


def _hold(use_file: Path) -> BinaryIO:
    """The file, so that nobody removes what it stands for until it is closed."""
    for again in range(_TIMES, -1, -1):
        try:
            use_file.parent.mkdir(parents=True, exist_ok=True)
            used = use_file.open("ab")
        except (FileNotFoundError, FileExistsError):  # its folder was empty, and was removed in this moment
            if not again:
                raise
            continue
        fcntl.flock(used, fcntl.LOCK_SH)  # waits for whoever is removing the copy
        if _is_at(used, use_file):
            return used
        used.close()
    raise FileNotFoundError(f"{use_file} is removed again and again")


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folder: Path, root: Path) -> None:
    with contextlib.suppress(OSError):  # there is something in it
        while folder != root:
            folder.rmdir()
            folder = folder.parent


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


def _is_whole(directory: Path, *, transfer: Transfer) -> bool:
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
            size_bytes = sum(sizes.values())
            watched = transfer if size_bytes >= _LONG_BYTES else unwatched
            passed = watched(f"verifying {directory.name}", size_bytes)
            with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
                digests = dict(zip(files, pool.map(lambda name: _sha256(directory / name, passed), files), strict=True))
            if digests == {name: file.sha256 for name, file in files.items()}:
                return True
    except (FileNotFoundError, CorruptObjectError, UnknownFormatError):
        pass
    logger.warning("local copy does not match its record, making it anew", extra={"copy": str(directory)})
    return False


def _sha256(path: Path, passed: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            passed(len(piece))
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if not path.is_dir())


def _record(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.json")


def _use_file(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.used")


def _lock_file(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lock")


def _partial(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.partial")
