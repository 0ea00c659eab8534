"""A place of backups: what objects of a store held, by digest, and snapshots that say which object held what, and when.

    objects/{ab}/{sha256}        content, once however many objects and snapshots hold it; also the snapshots' indexes
    snapshots/{time}-{nonce}.json        one backup, written last: it names its index and carries a digest of itself
    lock.json                    who writes to the place just now

The place is itself an object store, on another disk or server than the one that is backed up. What cannot be read in it
is named and passed over; it stays, since it may be the only copy of something.
"""

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents
from madpo.storage.content_names import sha256_of
from madpo.storage.place_lock import PlaceLock

_OBJECTS = "objects"
_SNAPSHOTS = "snapshots"
_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{4}")


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


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of old snapshots."""

    removed: tuple[str, ...] = ()
    """Their names."""
    holding: tuple[str, ...] = ()
    """Why no content was removed: what cannot be read may hold any of it."""


class Snapshots:
    """The snapshots of one place. Blocking; thread-safe but for `alone` and `prune`."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self._sizes: dict[str, int] | None = None
        self._distrusted: set[str] = set()
        self._lock: PlaceLock | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Write to the place with nobody beside; may be asked again within.

        Raises:
            FailedPreconditionError: Another backup goes on there; says whose.
        """
        if self._lock is not None:
            yield
            return
        with PlaceLock(self._place).held() as self._lock:
            self._sizes = None  # another may have removed some since
            try:
                yield
            finally:
                self._lock = None

    def holds(self, sha256: str, size_bytes: int) -> bool:
        """Whether the content is there, as a listing of the place says that was made once, and not distrusted."""
        if self._sizes is None:
            self._sizes = {info.key: info.size_bytes for info in self._place.list(f"{_OBJECTS}/")}
        return sha256 not in self._distrusted and self._sizes.get(_object(sha256)) == size_bytes

    def add(self, sha256: str, path: Path) -> None:
        """Keep the content of a file, whose digest that is."""
        self._place.put_file(_object(sha256), path)
        self._distrusted.discard(sha256)
        if self._sizes is not None:
            self._sizes[_object(sha256)] = path.stat().st_size

    def distrust(self, sha256s: Collection[str]) -> None:
        """Hold content for missing that was found damaged, so that it is written over where somebody still has it."""
        self._distrusted.update(sha256s)

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
        """Make a snapshot of entries whose content is there; within `alone`."""
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
        self._require_alone()
        self._place.put_if_absent(_snapshot(snapshot.name), documents.seal(asdict(snapshot)))
        return snapshot

    def all(self) -> list[Snapshot]:
        """All that can be read, oldest first."""
        return [found for _, found in self._found() if isinstance(found, Snapshot)]

    def unreadable(self) -> list[str]:
        """What is wrong with those that were changed, or that a newer madpo made; names each."""
        return [found for _, found in self._found() if isinstance(found, str)]

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
        try:
            return self._read(newest)
        except (CorruptObjectError, UnknownFormatError) as error:
            others = [snapshot.name for snapshot in self.all()]
            newest_whole = f"the newest that can be read is {others[-1]}" if others else "none can be read"
            raise type(error)(f"{error}; {newest_whole}") from error

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

    def prune(self, keep: int) -> Pruned:
        """Remove all that is older than the newest `keep` whole snapshots, then content that none holds.

        Raises:
            InvalidArgumentError: `keep` is below 1.
            FailedPreconditionError: Another backup goes on there.
        """
        if keep < 1:
            raise InvalidArgumentError(f"at least one snapshot must be kept, got {keep}")
        with self.alone():
            found = {name: self._objects_of(snapshot) for name, snapshot in self._found()}
            whole = [name for name, objects in found.items() if not isinstance(objects, str)]
            removed = [name for name in found if len(whole) > keep and name < whole[-keep]]
            kept = [objects for name, objects in found.items() if name not in removed]
            for name in removed:
                self._delete(_snapshot(name))
            holding = tuple(objects for objects in kept if isinstance(objects, str))
            if not holding:
                held = set[str]().union(*kept)
                for info in list(self._place.list(f"{_OBJECTS}/")):
                    if info.key not in held:
                        self._delete(info.key)
            self._sizes = None
        return Pruned(tuple(removed), holding)

    def _found(self) -> Iterator[tuple[str, Snapshot | str]]:
        """Each by its name, oldest first; text where it cannot be read, which says why."""
        for info in self._place.list(f"{_SNAPSHOTS}/"):
            name = info.key.removeprefix(f"{_SNAPSHOTS}/").removesuffix(".json")
            try:
                yield name, self._read(info.key)
            except (CorruptObjectError, UnknownFormatError) as error:
                yield name, str(error)
            except NotFoundError:
                continue  # removed meanwhile

    def _objects_of(self, snapshot: Snapshot | str) -> set[str] | str:
        """Keys of the content of a snapshot; text where it cannot be read, which says why."""
        if isinstance(snapshot, str):
            return snapshot
        try:
            return {_object(snapshot.index), *(_object(entry.sha256) for entry in self.entries(snapshot))}
        except (CorruptObjectError, UnknownFormatError) as error:
            return str(error)

    def _delete(self, key: str) -> None:
        self._require_alone()
        self._place.delete(key)

    def _require_alone(self) -> None:
        assert self._lock is not None, "only within `alone`"
        self._lock.require()

    def _read(self, key: str) -> Snapshot:
        body = documents.unseal(self._place.get(key), key=key, sealed_always=True)
        with documents.reading(key):
            fields = documents.known_fields(Snapshot, body)
            return Snapshot(**fields | {"damaged": tuple(fields["damaged"])})


def _object(sha256: str) -> str:
    return f"{_OBJECTS}/{sha256[:2]}/{sha256}"


def _snapshot(name: str) -> str:
    return f"{_SNAPSHOTS}/{name}.json"
