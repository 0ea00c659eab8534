"""Bundles whose files were damaged at rest, by whoever has the same files once more."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from madpo.errors import CorruptObjectError, FailedPreconditionError
from madpo.ports import ObjectStore
from madpo.storage import bundle
from madpo.storage.files import Transfer, read_sha256, unwatched
from madpo.types import FileEntry

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 4


def mend(store: ObjectStore, prefix: str, directory: Path, *, transfer: Transfer = unwatched) -> None:
    """Read all files of a bundle that is there, and store those of a directory again whose bytes are others by now.

    Args:
        store: Where.
        prefix: Key prefix of the bundle.
        directory: The same, or the same content in other files.
        transfer: Told of it and of the bytes of each file that is read; may end it by raising.

    Raises:
        NotFoundError: There is no such bundle, or not any more.
        CorruptObjectError: The manifest was changed.
        FailedPreconditionError: A damaged file is none of the directory.
    """
    there = set(bundle.describe(directory))
    files = bundle.read_manifest(store, prefix).files
    passed = transfer(f"verifying {prefix.split('/')[-1]}", sum(file.size_bytes for file in files))

    def verify(file: FileEntry) -> None:
        key = f"{prefix}/{file.path}"
        try:
            with store.open_read(key) as stream:
                sha256 = read_sha256(stream, passed)
        except CorruptObjectError:  # the disk cannot read it
            sha256 = ""
        if sha256 == file.sha256:
            return
        if file not in there:
            raise FailedPreconditionError(
                f"{key} is damaged, and was stored by a version of madpo that makes other files of the same: delete "
                f"{prefix.split('/')[-1]}, then store it again"
            )
        logger.warning("a damaged file is stored again", extra={"key": key})
        store.put_file(key, directory / file.path)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        list(pool.map(verify, files))
