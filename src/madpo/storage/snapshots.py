"""A place of backups: what objects of a store held, by digest, and snapshots that say which object held what, and when.

    objects/{ab}/{sha256}        content, once however many objects and snapshots hold it; also the snapshots' indexes
    snapshots/{time}-{nonce}.json        one backup, written last: it names its index and carries a digest of itself

The place is itself an object store, on another disk or server than the one that is backed up.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import documents
from madpo.storage.content_names import sha256_of

_OBJECTS = "objects"
_SNAPSHOTS = "snapshots"
_NAME = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it was backed up; `etag` and `modified_time`, in seconds since the epoch, are those of its store."""

    key: str
    sha256: str
    size_bytes: int
    etag: str = ""
    modified_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One backup. `create_time` is in seconds since the epoch, `madpo` the version that made it."""

    name: str
    create_time: float
    madpo: str
    objects: int
    size_bytes: int
    index: str
    """SHA-256 of the list of its entries."""
    damaged: tuple[str, ...] = ()
    """What could not be backed up, since it was damaged or incomplete in the store."""


class Snapshots:
    """The snapshots of one place. Blocking; thread-safe but for `prune`."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self._sizes: dict[str, int] | None = None

    def holds(self, sha256: str, size_bytes: int) -> bool:
        """Whether the content is there, as a listing of the place says that was made once."""
        if self._sizes is None:
            self._sizes = {info.key: info.size_bytes for info in self._place.list(f"{_OBJECTS}/")}
        return self._sizes.get(_object(sha256)) == size_bytes

    def add(self, sha256: str, path: Path) -> None:
        """Keep the content of a file, whose digest that is."""
        self._place.put_file(_object(sha256), path)
        if self._sizes is not None:
            self._sizes[_object(sha256)] = path.stat().st_size

    def drop(self, sha256: str) -> None:
        """Remove content that was found damaged, so that the next backup copies it again."""
        self._place.delete(_object(sha256))
        self._sizes = None

    def fetch(self, entry: Entry, path: Path) -> None:
        """Copy an object's content to a local file, verified.

        Raises:
            CorruptObjectError: It is missing or damaged; names the object, and where its content was to be.
        """
        key = _object(entry.sha256)
        try:
            found = self._place.get_file(key, path)
        except NotFoundError as error:
            raise CorruptObjectError(f"the backup lacks {key}, which {entry.key} held") from error
        if found != entry.sha256:
            path.unlink()
            raise CorruptObjectError(f"the backup's {key} is damaged, which {entry.key} held: its SHA-256 is {found}")

    def write(self, entries: Sequence[Entry], *, damaged: Sequence[str]) -> Snapshot:
        """Make a snapshot of entries whose content is there."""
        body = documents.seal({"entries": [asdict(entry) for entry in entries]})
        index = sha256_of(body)
        self._place.put(_object(index), body)
        now = time.time()
        snapshot = Snapshot(
            f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S-%f}-{uuid4().hex[:4]}",
            now,
            version("madpo"),
            len(entries),
            sum(entry.size_bytes for entry in entries),
            index,
            tuple(damaged),
        )
        self._place.put_if_absent(_snapshot(snapshot.name), documents.seal(asdict(snapshot)))
        return snapshot

    def all(self) -> list[Snapshot]:
        """All of them, oldest first.

        Raises:
            CorruptObjectError: One was changed; names it.
            UnknownFormatError: One was made by a newer madpo.
        """
        return [self._read(info.key) for info in self._place.list(f"{_SNAPSHOTS}/")]

    def named(self, name: str | None) -> Snapshot:
        """The snapshot of a name, or the newest.

        Raises:
            InvalidArgumentError: That is no snapshot's name.
            NotFoundError: There is none.
        """
        if name is not None:
            if not _NAME.fullmatch(name):
                raise InvalidArgumentError(f"{name!r} is no snapshot's name, such as 20260131-235959-123456-1a2b")
            try:
                return self._read(_snapshot(name))
            except NotFoundError:
                raise NotFoundError(f"there is no snapshot {name}") from None
        newest = max((info.key for info in self._place.list(f"{_SNAPSHOTS}/")), default=None)
        if newest is None:
            raise NotFoundError("there is no backup here: expected a place that `madpo backup` wrote to")
        return self._read(newest)

    def entries(self, snapshot: Snapshot) -> Sequence[Entry]:
        """What a snapshot holds, in the order in which it is to be written back. Raises CorruptObjectError."""
        key = _object(snapshot.index)
        try:
            body = self._place.get(key)
        except NotFoundError as error:
            raise CorruptObjectError(f"the index of snapshot {snapshot.name}, {key}, is missing") from error
        if sha256_of(body) != snapshot.index:
            raise CorruptObjectError(f"the index of snapshot {snapshot.name}, {key}, is damaged")
        with documents.reading(key):
            found = documents.unseal(body, key=key)["entries"]
            return [Entry(**documents.known_fields(Entry, entry)) for entry in found]

    def prune(self, keep: int) -> list[Snapshot]:
        """Remove all but the newest `keep` snapshots, then content that none holds; while no backup is made here.

        Raises:
            InvalidArgumentError: `keep` is below 1.
        """
        if keep < 1:
            raise InvalidArgumentError(f"at least one snapshot must be kept, got {keep}")
        snapshots = self.all()
        kept, removed = snapshots[-keep:], snapshots[:-keep]
        held = {_object(snapshot.index) for snapshot in kept}
        held |= {_object(entry.sha256) for snapshot in kept for entry in self.entries(snapshot)}
        for snapshot in removed:
            self._place.delete(_snapshot(snapshot.name))
        for info in list(self._place.list(f"{_OBJECTS}/")):
            if info.key not in held:
                self._place.delete(info.key)
        self._sizes = None
        return removed

    def _read(self, key: str) -> Snapshot:
        body = documents.unseal(self._place.get(key), key=key, sealed_always=True)
        with documents.reading(key):
            fields = documents.known_fields(Snapshot, body)
            return Snapshot(**fields | {"damaged": tuple(fields["damaged"])})


def _object(sha256: str) -> str:
    return f"{_OBJECTS}/{sha256[:2]}/{sha256}"


def _snapshot(name: str) -> str:
    return f"{_SNAPSHOTS}/{name}.json"
