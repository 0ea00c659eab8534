"""Copies of stored objects on this host: made once for all its processes, and removed when nobody has used them long.

Beside a copy `model-1` stand two empty files, which stay: `.model-1.lock`, held while it is made, and `.model-1.used`,
held by every process that uses the copy, whose time is that of the last use.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from madpo.storage.files import fetch_once

logger = logging.getLogger(__name__)


class LocalCopies:
    """A directory of copies; those that were asked for are in use until `release`, or until this object is gone.

    Args:
        root: The directory; any number of processes may share it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: dict[str, BinaryIO] = {}

    def fetch(self, name: str, fetch: Callable[[Path], object]) -> Path:
        """A copy, made where there is none.

        Args:
            name: Its path below the root.
            fetch: See `fetch_once`.
        """
        directory = self._root / name
        if name not in self._held:
            directory.parent.mkdir(parents=True, exist_ok=True)
            used = _use_file(directory).open("ab")
            fcntl.flock(used, fcntl.LOCK_SH)  # waits for whoever is removing the copy
            self._held[name] = used
        os.utime(_use_file(directory))
        return fetch_once(directory, fetch)

    def release(self) -> None:
        """Say that what was fetched so far is in use no more."""
        for used in self._held.values():
            used.close()
        self._held.clear()

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


def _use_file(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.used")
