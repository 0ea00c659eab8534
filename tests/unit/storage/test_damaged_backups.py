"""A place of backups in which something is damaged, or into which two write at once."""

from pathlib import Path
from typing import Any

import pytest

from madpo.errors import CorruptObjectError, FailedPreconditionError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys, place_lock
from madpo.storage.backup import back_up, restore, verify
from madpo.storage.local import LocalStore
from madpo.storage.place_lock import PlaceLock
from madpo.storage.snapshots import Entry, Pruned, Snapshot, Snapshots
from tests.unit.storage.test_backups import contents, fill, job


@pytest.fixture
def place(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "place")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "filled")
    fill(store, tmp_path)
    return store


def change(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def content_of(tmp_path: Path, sha256: str) -> Path:
    return tmp_path / "place" / "objects" / sha256[:2] / sha256


def damage(kind: str, snapshot: Snapshot, place: LocalStore, tmp_path: Path) -> None:
    key = f"snapshots/{snapshot.name}.json"
    if kind == "snapshot":
        change(tmp_path / "place" / key)
    elif kind == "cut":
        (tmp_path / "place" / key).write_bytes(b"")
    elif kind == "newer":
        place.put(key, documents.seal({}, version=2))
    elif kind == "index":
        change(content_of(tmp_path, snapshot.index))
    else:
        content_of(tmp_path, snapshot.index).unlink()


DAMAGES = ["snapshot", "cut", "newer", "index", "index missing"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_backup_is_made_beside_one_that_cannot_be_read(
    store: LocalStore, place: LocalStore, tmp_path: Path, kind: str, which: int
) -> None:
    before = [back_up(store, Snapshots(place))]
    store.put("pins/model-2.json", b"{}")
    before.append(back_up(store, Snapshots(place)))
    damage(kind, before[which], place, tmp_path)
    store.put("pins/model-3.json", b"{}")
    snapshot = back_up(store, Snapshots(place))
    assert Snapshots(place).named(None) == snapshot
    assert verify(Snapshots(place), snapshot) == []
    restored = LocalStore(tmp_path / "restored")
    restore(restored, Snapshots(place), snapshot)
    assert contents(restored) == contents(store)
    damaged = before[which].name
    if "index" in kind:
        assert [damaged in wrong for wrong in verify(Snapshots(place), before[which])] == [True]
    else:
        assert [damaged in wrong for wrong in Snapshots(place).unreadable()] == [True]
        assert damaged not in [each.name for each in Snapshots(place).all()]


def test_the_newest_that_cannot_be_read_is_not_replaced_by_an_older_one_unasked(
    store: LocalStore, place: LocalStore, tmp_path: Path
) -> None:
    first, second = (back_up(store, Snapshots(place)) for _ in range(2))
    damage("snapshot", second, place, tmp_path)
    with pytest.raises(CorruptObjectError, match=rf"{second.name}.*newest that can be read is {first.name}"):
        Snapshots(place).named(None)
    damage("newer", first, place, tmp_path)
    with pytest.raises(CorruptObjectError, match="none can be read"):
        Snapshots(place).named(None)
    with pytest.raises(UnknownFormatError, match="upgrade"):
        Snapshots(place).named(first.name)


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_an_unreadable_snapshot_may_hold_stays_until_it_is_as_old_as_those_that_are_removed(
    store: LocalStore, place: LocalStore, tmp_path: Path, kind: str
) -> None:
    names = []
    for number in range(3):
        store.put("pins/model-2.json", b'{"n": %d}' % number)
        names.append(back_up(store, Snapshots(place)).name)
    damage(kind, Snapshots(place).named(names[1]), place, tmp_path)
    there = {info.key for info in place.list("objects/")}
    pruned = Snapshots(place).prune(2)
    assert pruned.removed == ()  # two whole ones are to be kept
    store.put("pins/model-2.json", b'{"n": 3}')
    back_up(store, Snapshots(place))
    pruned = Snapshots(place).prune(3)
    assert pruned.removed == ()
    assert len(pruned.holding) == 1
    assert there <= {info.key for info in place.list("objects/")}
    pruned = Snapshots(place).prune(2)
    assert pruned == Pruned((names[0], names[1]))
    held = {entry.sha256 for each in Snapshots(place).all() for entry in Snapshots(place).entries(each)}
    held |= {each.index for each in Snapshots(place).all()}
    assert {info.key.split("/")[-1] for info in place.list("objects/")} == held


def test_all_that_is_damaged_is_named_and_nothing_is_removed(
    store: LocalStore, place: LocalStore, tmp_path: Path
) -> None:
    snapshot = back_up(store, Snapshots(place))
    entries = {entry.sha256: entry for entry in Snapshots(place).entries(snapshot)}
    for sha256 in entries:
        change(content_of(tmp_path, sha256))
    before = contents(place)
    for _ in range(2):
        wrong = verify(Snapshots(place), snapshot)
        assert len(wrong) == snapshot.objects
        assert all(any(entry.key in line for line in wrong) for entry in entries.values())
        assert contents(place) == before


def test_what_only_the_backup_had_stays_and_what_the_store_has_is_written_over(
    store: LocalStore, place: LocalStore, tmp_path: Path
) -> None:
    snapshot = back_up(store, Snapshots(place))
    by_key: dict[str, Entry] = {entry.key: entry for entry in Snapshots(place).entries(snapshot)}
    lost, mended = (next(entry for key, entry in by_key.items() if key.endswith(end)) for end in ("weights", "part"))
    for entry in (lost, mended):
        change(content_of(tmp_path, entry.sha256))
    store.delete(lost.key.replace("weights", "manifest.json"))
    store.delete(lost.key)
    snapshots = Snapshots(place)
    assert len(verify(snapshots, snapshot)) == 2
    back_up(store, snapshots)
    (wrong,) = verify(Snapshots(place), snapshot)
    assert lost.key in wrong
    assert content_of(tmp_path, lost.sha256).stat().st_size == lost.size_bytes


class ListenedStore(LocalStore):
    """Does something before a listing of what there is."""

    before_listing: Any = staticmethod(lambda: None)

    def list(self, prefix: str) -> Any:
        if prefix == "objects/":
            self.before_listing()
        return super().list(prefix)


def test_a_second_backup_to_the_place_is_refused_while_one_goes_on(
    object_store: ObjectStore, store: LocalStore, tmp_path: Path
) -> None:
    snapshots = Snapshots(object_store)
    with snapshots.alone():
        back_up(store, snapshots)
        for other in (
            lambda: back_up(store, Snapshots(object_store)),
            lambda: Snapshots(object_store).prune(1),
        ):
            with pytest.raises(FailedPreconditionError, match=r"another backup .* process \d+ on"):
                other()
        assert snapshots.prune(1) == Pruned()
    back_up(store, Snapshots(object_store))
    assert object_store.head(place_lock.KEY) is None
    assert len(Snapshots(object_store).all()) == 2


def test_a_prune_beside_a_backup_removes_nothing_that_it_found_there(store: LocalStore, tmp_path: Path) -> None:
    place = ListenedStore(tmp_path / "place")
    back_up(store, Snapshots(place))
    store.put("pins/model-2.json", b"{}")
    back_up(store, Snapshots(place))
    store.delete("pins/model-2.json")
    refused = []

    def prune() -> None:
        place.before_listing = lambda: None
        try:
            Snapshots(LocalStore(tmp_path / "place")).prune(1)
        except FailedPreconditionError as error:
            refused.append(str(error))

    place.before_listing = prune
    snapshot = back_up(store, Snapshots(place))
    assert len(refused) == 1
    assert verify(Snapshots(place), snapshot) == []


def test_the_lock_of_a_killed_backup_is_taken_over_and_its_holder_can_do_no_more(
    object_store: ObjectStore, store: LocalStore
) -> None:
    back_up(store, Snapshots(object_store))
    killed = PlaceLock(object_store)
    killed._take()  # and is never heard of again
    with PlaceLock(object_store, lease_s=0).held() as lock:
        lock.require()
        killed._renew()
        with pytest.raises(FailedPreconditionError, match="taken the place over"):
            killed.require()
        killed._release()
        lock.require()
    assert object_store.head(place_lock.KEY) is None


def test_a_renewal_whose_answer_was_lost_is_known_again(object_store: ObjectStore) -> None:
    with PlaceLock(object_store).held() as lock:
        assert lock._etag is not None
        object_store.put_if_match(place_lock.KEY, lock._body(), lock._etag)
        lock._renew()
        lock._renew()
        lock.require()
    assert object_store.head(place_lock.KEY) is None


def test_a_file_of_a_bundle_that_is_being_written_is_no_damaged_document(store: LocalStore, place: LocalStore) -> None:
    prefix = keys.checkpoint(job(2).job_id, step=9, attempt=1)
    store.put(f"{prefix}/state.json", b'{"format": 1, "step": 9}')  # its digest will stand in the manifest
    snapshot = back_up(store, Snapshots(place))
    assert snapshot.damaged == ()
