"""Bundles that grow file by file: what was stored before a run was stopped is there for the next one.

Files are named `part-00003-{SHA-256}.{suffix}`, so that a name says all that the manifest will say of the file; the
bundle becomes real, like every other, when its manifest is written.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madpo.errors import AlreadyExistsError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.withdrawals import settle
from madpo.types import FileEntry

_NAME = re.compile(r"part-(\d{5,})-([0-9a-f]{64})\.\w+")


def hold(store: ObjectStore, prefix: str) -> None:
    """Keep what was left half made from being removed as given up, before it is gone on with; nothing where nothing is.

    Who removes it leaves a note before he looks how new it is, and this looks for a note after it has renewed it: so
    either it stays, or all of it is gone once this returns.

    Raises:
        UnavailableError: It is being removed without end.
    """
    if next(store.list(f"{prefix}/"), None) is not None:
        store.put(keys.held(prefix), b"")
        settle(store, prefix)


class GrowingBundle:
    """A bundle on its way; any number of writers of the same content may be at it.

    Args:
        store: Where to.
        prefix: Key prefix of the bundle.
        suffix: Of its files.

    Attributes:
        files: Those that are stored, from the first without a gap.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, suffix: str) -> None:
        self._store, self._prefix, self._suffix = store, prefix, suffix
        found: dict[int, FileEntry] = {}
        for info in store.list(f"{prefix}/"):
            if name := _NAME.fullmatch(info.key.removeprefix(f"{prefix}/")):
                found.setdefault(int(name[1]), FileEntry(name[0], info.size_bytes, name[2]))
        self.files: list[FileEntry] = []
        while len(self.files) in found:
            self.files.append(found[len(self.files)])

    def add(self, path: Path) -> None:
        """Store a file as the next one."""
        sha256 = bundle.file_sha256(path)
        file = FileEntry(f"part-{len(self.files):05d}-{sha256}.{self._suffix}", path.stat().st_size, sha256)
        self._store.put_file(f"{self._prefix}/{file.path}", path)
        self.files.append(file)

    def fetch(self, file: FileEntry, path: Path) -> None:
        """Copy one of the files to `path`, verified. Raises CorruptObjectError."""
        bundle.fetch_file(self._store, self._prefix, file, path)

    def remove(self) -> None:
        """Remove all files: what they were kept for is done."""
        bundle.delete(self._store, self._prefix)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Make the bundle real; one that another writer has finished meanwhile stays as it is.

        Raises:
            CorruptObjectError: An object does not have its file's size.
        """
        with contextlib.suppress(AlreadyExistsError):  # the same content, written by another version of Arrow
            bundle.seal(self._store, self._prefix, tuple(self.files), metadata=metadata)
