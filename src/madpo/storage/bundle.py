"""Bundles: a set of files under one key prefix that becomes real when its manifest is written, last.

The manifest names every file with size and SHA-256 and carries a digest of itself, so that a changed byte is noticed
before it is used. Once written, a bundle never changes, but for the time at which the same files were stored last.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from madpo.errors import AlreadyExistsError, CorruptObjectError, InvalidArgumentError, NotFoundError
from madpo.ports import ObjectInfo, ObjectStore
from madpo.storage import documents
from madpo.storage.files import Transfer, unwatched
from madpo.storage.keys import MANIFEST, check_path
from madpo.types import FileEntry

logger = logging.getLogger(__name__)

_PARALLEL_TRANSFERS = 4
_LARGE_BYTES = 256 << 20
_STORED_TIME = "stored_time"
"""In the metadata, since version 0.1.0 takes a manifest with any further field for damaged."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds. `metadata` is JSON; `create_time` is in seconds since the epoch."""

    files: tuple[FileEntry, ...]
    metadata: Mapping[str, Any]
    create_time: float

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def stored_time(self) -> float:
        """When the same files were stored last, in seconds since the epoch."""
        return float(self.metadata.get(_STORED_TIME, self.create_time))


def describe(directory: Path) -> tuple[FileEntry, ...]:
    """The files of a directory and its subdirectories, sorted by path.

    Raises:
        InvalidArgumentError: A file is no regular file (a symbolic link, say), or its path cannot be part of a key.
    """
    return tuple(sorted(_entries(directory), key=lambda entry: entry.path))


def digest(files: tuple[FileEntry, ...], *, salt: str = "") -> str:
    """32 hex digits of SHA-256 over the paths and digests of the files, and over `salt`."""
    content = {"files": [[file.path, file.sha256] for file in files], "salt": salt}
    return hashlib.sha256(documents.encode(content)).hexdigest()[:32]


def publish(
    store: ObjectStore,
    prefix: str,
    directory: Path,
    *,
    metadata: Mapping[str, Any],
    others: Callable[[], Sequence[FileEntry]] = tuple,
    guard: Callable[[], None] = lambda: None,
    transfer: Transfer = unwatched,
) -> Manifest:
    """Store the files of a directory as a bundle.

    Idempotent: where the same files are stored already, they and their manifest stay as they are. A damaged bundle is
    written over.

    Args:
        store: Where to.
        prefix: Key prefix of the bundle.
        directory: The files; subdirectories are kept.
        metadata: Anything JSON can hold.
        others: Gives more files of the bundle, once `upload` has stored them; called when those of `directory` are.
        guard: Called before the upload and right before and after the manifest is written; stops by raising.
        transfer: Told of it and of the bytes of each file that is stored; may end it by raising.

    Returns:
        The manifest that is stored now.

    Raises:
        AlreadyExistsError: The bundle exists with other files.
        InvalidArgumentError: See `describe`.
        CorruptObjectError: An object does not have its file's size after the upload.
    """
    guard()
    files = describe(directory)
    stored = find_whole(store, prefix)
    if stored is None:
        _put_all(store, prefix, files, directory, transfer=transfer)
    every = tuple(sorted((*files, *others()), key=lambda file: file.path))
    if stored is not None:
        return _same(stored, every, prefix)
    return seal(store, prefix, every, metadata=metadata, guard=guard)


def upload(
    store: ObjectStore, prefix: str, directory: Path, *, transfer: Transfer = unwatched
) -> tuple[FileEntry, ...]:
    """Store files of a bundle that somebody else will publish; what they are. Raises as `publish`."""
    files = describe(directory)
    _put_all(store, prefix, files, directory, transfer=transfer)
    return files


def _put_all(
    store: ObjectStore, prefix: str, files: tuple[FileEntry, ...], directory: Path, *, transfer: Transfer
) -> None:
    passed = transfer(f"storing {prefix.split('/')[-1]}", sum(file.size_bytes for file in files))

    def put(file: FileEntry) -> None:
        _put(store, prefix, file, directory)
        passed(file.size_bytes)

    with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
        list(pool.map(put, files))


def seal(
    store: ObjectStore,
    prefix: str,
    files: tuple[FileEntry, ...],
    *,
    metadata: Mapping[str, Any],
    guard: Callable[[], None] = lambda: None,
) -> Manifest:
    """Make a bundle of files that are stored already, by writing its manifest; else as `publish`."""
    manifest = Manifest(files, metadata, time.time())
    if not _is_whole(store, prefix, manifest):
        raise CorruptObjectError(f"{prefix}: objects differ in size from the uploaded files")
    guard()
    key, data = f"{prefix}/{MANIFEST}", _encode(manifest)
    while not store.put_if_absent(key, data):
        if stored := find_whole(store, prefix):
            manifest = _same(stored, files, prefix)
            break
        _, etag = store.get_with_etag(key)
        if find_whole(store, prefix) is None and store.put_if_match(key, data, etag) is not None:
            logger.warning("damaged bundle written over", extra={"prefix": prefix})
            break
    guard()
    return manifest


def renew(store: ObjectStore, prefix: str, *, since: float) -> Manifest | None:
    """Note that the files of a whole bundle were stored again; its manifest, or None where there is no such bundle.

    Args:
        store: Where.
        prefix: Key prefix of the bundle.
        since: Seconds since the epoch: one that was stored again later than that is left as it is.
    """
    key = f"{prefix}/{MANIFEST}"
    while True:  # a lost race means that another has renewed it, or that it is gone: finite
        try:
            data, etag = store.get_with_etag(key)
            stored = _decode(data, key)
        except (NotFoundError, CorruptObjectError):
            return None
        if not _is_whole(store, prefix, stored):
            return None
        if stored.stored_time > since:
            return stored
        renewed = replace(stored, metadata={**stored.metadata, _STORED_TIME: time.time()})
        if store.put_if_match(key, _encode(renewed), etag) is not None:
            return renewed


def read_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """The manifest of a bundle.

    Raises:
        NotFoundError: There is no such bundle.
        CorruptObjectError: The manifest was changed.
        UnknownFormatError: It was written by a newer version.
    """
    key = f"{prefix}/{MANIFEST}"
    return _decode(store.get(key), key)


def find_stored_time(store: ObjectStore, prefix: str, *, is_damaged: bool = False) -> float | None:
    """When the same files were stored last, in seconds since the epoch.

    Args:
        store: Where.
        prefix: Key prefix of the bundle.
        is_damaged: Whether its manifest may be damaged, for who removes it all the same: then it is None.

    Raises:
        NotFoundError: There is no such bundle.
        CorruptObjectError: The manifest was changed, and may not be.
        UnknownFormatError: It was written by a newer version.
    """
    try:
        return read_manifest(store, prefix).stored_time
    except CorruptObjectError:
        if is_damaged:
            return None
        raise


def _decode(data: bytes, key: str) -> Manifest:
    body = documents.unseal(data, key=key, sealed_always=True)
    try:
        files = tuple(FileEntry(check_path(file["path"]), file["size_bytes"], file["sha256"]) for file in body["files"])
        return Manifest(files, body["metadata"], body["create_time"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{key} is no manifest of a bundle") from error


def find_whole(store: ObjectStore, prefix: str) -> Manifest | None:
    """The manifest of a bundle that has all its files in their sizes, or None."""
    try:
        manifest = read_manifest(store, prefix)
    except (NotFoundError, CorruptObjectError):
        return None
    return manifest if _is_whole(store, prefix, manifest) else None


def find_intact(store: ObjectStore, prefix: str) -> Manifest | None:
    """As `find_whole`, for what is made again from other things: a damaged bundle is removed."""
    if (manifest := find_whole(store, prefix)) is None and store.head(f"{prefix}/{MANIFEST}") is not None:
        logger.warning("damaged bundle removed", extra={"prefix": prefix})
        delete(store, prefix)
    return manifest


def fetch(store: ObjectStore, prefix: str, directory: Path, *, under: str = "", transfer: Transfer = unwatched) -> None:
    """Copy the files of a bundle to a local directory, verified.

    Args:
        store: Where from.
        prefix: Key prefix of the bundle.
        directory: Where to; made when missing.
        under: Only the files below this subdirectory, without it.
        transfer: Told of it and of the bytes as they pass; may end it by raising.

    Raises:
        NotFoundError: There is no such bundle, or nothing below `under`.
        CorruptObjectError: An object is missing or does not match its size or SHA-256; names its key.
    """
    files = read_manifest(store, prefix).files
    start = f"{under}/" if under else ""
    wanted = [file for file in files if file.path.startswith(start)]
    if under and not wanted:
        raise NotFoundError(f"{prefix} has no files below {under}/")
    directory.mkdir(parents=True, exist_ok=True)
    passed = transfer(f"fetching {prefix.split('/')[-1]}", sum(file.size_bytes for file in wanted))
    with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
        targets = [directory / file.path.removeprefix(start) for file in wanted]
        list(pool.map(lambda file, target: fetch_file(store, prefix, file, target, passed=passed), wanted, targets))


def fetch_file(
    store: ObjectStore,
    prefix: str,
    file: FileEntry,
    path: Path,
    *,
    passed: Callable[[int], None] = lambda count: None,
) -> None:
    """Copy one file of a bundle to `path`, verified.

    Raises:
        CorruptObjectError: See `fetch`. Nothing is left at `path`.
    """
    key = f"{prefix}/{file.path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    _say("fetching", key, file)
    try:
        sha256 = store.get_file(key, path, passed=passed)
    except NotFoundError as error:
        raise CorruptObjectError(f"{key} is missing though its manifest names it") from error
    size_bytes = path.stat().st_size
    if (size_bytes, sha256) != (file.size_bytes, file.sha256):
        path.unlink()
        raise CorruptObjectError(
            f"{key} does not match its manifest: expected {file.size_bytes} bytes with SHA-256 {file.sha256},"
            f" got {size_bytes} bytes with {sha256}"
        )


def read_file(store: ObjectStore, prefix: str, file: FileEntry) -> bytes:
    """A small file of a bundle, verified. Raises CorruptObjectError as `fetch_file` does."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "file")
        fetch_file(store, prefix, file, path)
        return path.read_bytes()


def delete(store: ObjectStore, prefix: str) -> None:
    """Remove a bundle: its manifest first, so that it is gone before it is incomplete."""
    store.delete(f"{prefix}/{MANIFEST}")
    for info in list(store.list(f"{prefix}/")):
        store.delete(info.key)


def show(store: ObjectStore, prefix: str, manifest: bytes) -> None:
    """Write the manifest of a bundle whose files are all there; one that has a manifest stays as it is.

    One that was damaged before is so again, as long as there is a file that it may speak of.
    """
    key = f"{prefix}/{MANIFEST}"
    try:
        is_there = _is_whole(store, prefix, _decode(manifest, key))
    except CorruptObjectError:
        is_there = any(store.list(f"{prefix}/"))
    if is_there:
        store.put_if_absent(key, manifest)


def list_bundles(store: ObjectStore, root: str) -> Iterator[tuple[str, ObjectInfo]]:
    """Names of the bundles directly below a prefix, in key order, each with its manifest's description."""
    for info in store.list(f"{root}/"):
        name, _, rest = info.key.removeprefix(f"{root}/").partition("/")
        if rest == MANIFEST:
            yield name, info


def _put(store: ObjectStore, prefix: str, file: FileEntry, directory: Path) -> None:
    key = f"{prefix}/{file.path}"
    _say("storing", key, file)
    store.put_file(key, directory / file.path)


def _say(what: str, key: str, file: FileEntry) -> None:
    """Large files take their time; whoever watches the run sees which one it is at."""
    if file.size_bytes >= _LARGE_BYTES:
        logger.info("%s %s (%.1f GiB)", what, key, file.size_bytes / 2**30)


def _entries(directory: Path) -> Iterator[FileEntry]:
    for parent, folders, names in os.walk(directory):
        for name in [*folders, *names]:
            path = Path(parent, name)
            relative = check_path(path.relative_to(directory).as_posix())
            if relative == MANIFEST:
                raise InvalidArgumentError(f"{MANIFEST} is reserved: rename this file")
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InvalidArgumentError(f"{relative} is no regular file: only plain files can be stored")
            if path.is_file():
                yield FileEntry(relative, path.stat().st_size, file_sha256(path))


def _is_whole(store: ObjectStore, prefix: str, manifest: Manifest) -> bool:
    sizes = {info.key: info.size_bytes for info in store.list(f"{prefix}/")}
    return all(sizes.get(f"{prefix}/{file.path}") == file.size_bytes for file in manifest.files)


def _same(stored: Manifest, files: tuple[FileEntry, ...], prefix: str) -> Manifest:
    if stored.files != files:
        raise AlreadyExistsError(f"{prefix} exists with other files")
    return stored


def _encode(manifest: Manifest) -> bytes:
    body = {
        "create_time": manifest.create_time,
        "files": [asdict(file) for file in manifest.files],
        "metadata": manifest.metadata,
    }
    # Version 0.1.0 takes a manifest with any further field for damaged, and would remove the bundle.
    return documents.seal(body, version=None)


def file_sha256(path: Path) -> str:
    """In hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
