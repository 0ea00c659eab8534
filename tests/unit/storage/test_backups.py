"""Backups: whole whatever goes on meanwhile, copied once, verified, and written back into an empty store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import (
    CorruptObjectError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnknownFormatError,
)
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.access_tokens import create_token
from madpo.storage.backup import back_up, restore, verify
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.content_names import sha256_of
from madpo.storage.listing import list_newest
from madpo.storage.local import LocalStore
from madpo.storage.results import write_result, write_spec
from madpo.storage.snapshots import Pruned, Snapshots
from madpo.storage.withdrawals import withdraw
from madpo.types import AccessToken, Job, JobKind, JobResult, JobState, Role

MODEL = "model-" + "1" * 32
DATASET = "dataset-" + "2" * 32
MARGINS, LEDGER, LOG = b"margins", b"ledger", b"more"


def job(number: int, *, depends_on: tuple[str, ...] = ()) -> Job:
    return Job(
        job_id=f"job-{number:032x}",
        kind=JobKind.SUPERVISED_TRAINING,
        state=JobState.PENDING,
        spec={"model": {"model_id": MODEL}},
        depends_on=depends_on,
        create_time=float(number),
    )


def margins(job_id: str, attempt: int, part: int) -> str:
    return keys.margin_journal_part(job_id, attempt=attempt, part=part, sha256=sha256_of(MARGINS))


def ledger(job_id: str, step: int, attempt: int) -> str:
    return keys.ledger_part(job_id, step=step, attempt=attempt, sha256=sha256_of(LEDGER))


def files(directory: Path, **content: bytes) -> Path:
    directory.mkdir(parents=True)
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return directory


def fill(store: ObjectStore, directory: Path) -> None:
    bundle.publish(store, keys.model(MODEL), files(directory / "model", weights=b"w" * 5000), metadata={})
    bundle.publish(store, keys.dataset(DATASET), files(directory / "rows", part=b"rows"), metadata={"rows": 1})
    for number in (1, 2):
        write_spec(store, job(number))
        CheckpointStore(store, job(number).job_id, attempt=1).take_ownership()
        store.put(margins(job(number).job_id, 1, 0), MARGINS)
    write_result(store, job(1).job_id, JobState.SUCCEEDED, JobResult(model_id=MODEL), "")
    create_token(store, AccessToken("ana", Role.SUBMIT, create_time=1.0))
    store.put(keys.audit_record("2026-01-01", time_us=5, nonce="a"), b"{}")
    store.put(keys.pin(MODEL), b"{}")
    store.put(keys.probe("abc"), b"short-lived")


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("") if not info.key.startswith("probes/")}


@pytest.fixture
def place(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "place")


@pytest.fixture
def empty(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "empty")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "filled")
    fill(store, tmp_path)
    return store


def test_what_was_backed_up_is_written_back_byte_for_byte(
    object_store: ObjectStore, place: LocalStore, empty: LocalStore, tmp_path: Path
) -> None:
    fill(object_store, tmp_path)
    snapshot = back_up(object_store, Snapshots(place))
    restore(empty, Snapshots(place), Snapshots(place).named(None))
    assert contents(empty) == contents(object_store)
    assert (snapshot.objects, snapshot.damaged) == (len(contents(object_store)), ())


def test_the_place_may_be_an_s3_server_too(object_store: ObjectStore, store: LocalStore, empty: LocalStore) -> None:
    snapshot = back_up(store, Snapshots(object_store))
    restore(empty, Snapshots(object_store), snapshot)
    assert contents(empty) == contents(store)
    assert verify(Snapshots(object_store), snapshot) == []


def test_content_that_is_there_is_neither_read_nor_copied_again(store: LocalStore, place: LocalStore) -> None:
    copied: list[str] = []

    def transfer(name: str, size_bytes: int) -> Callable[[int], None]:
        copied.append(name)
        return lambda count: None

    back_up(store, Snapshots(place), transfer=transfer)
    assert len(copied) > 10
    copied.clear()
    back_up(store, Snapshots(place), transfer=transfer)
    assert copied == []
    store.put(keys.log(job(2).job_id, attempt=1, sha256=sha256_of(LOG)), LOG)
    back_up(store, Snapshots(place), transfer=transfer)
    assert copied == [f"backing up {keys.log(job(2).job_id, attempt=1, sha256=sha256_of(LOG))}"]


def test_a_backup_that_is_broken_off_leaves_no_snapshot_and_the_next_one_goes_on(
    store: LocalStore, place: LocalStore
) -> None:
    class BrokenOffError(Exception):
        pass

    copied: list[str] = []

    def transfer(name: str, size_bytes: int) -> Callable[[int], None]:
        copied.append(name)
        if "models/" in name:
            raise BrokenOffError
        return lambda count: None

    with pytest.raises(BrokenOffError):
        back_up(store, Snapshots(place), transfer=transfer)
    assert Snapshots(place).all() == []
    back_up(store, Snapshots(place))
    assert len(Snapshots(place).all()) == 1


def test_earlier_backups_stay_until_they_are_pruned(store: LocalStore, place: LocalStore, empty: LocalStore) -> None:
    first = back_up(store, Snapshots(place))
    before = contents(store)
    bundle.delete(store, keys.dataset(DATASET))
    store.put(keys.pin(DATASET), b"{}")
    second = back_up(store, Snapshots(place))
    restore(empty, Snapshots(place), Snapshots(place).named(first.name))
    assert contents(empty) == before
    assert Snapshots(place).prune(1) == Pruned((first.name,))
    assert Snapshots(place).all() == [second]
    assert verify(Snapshots(place), second) == []
    held = {entry.sha256 for entry in Snapshots(place).entries(second)} | {second.index}
    assert {info.key.split("/")[-1] for info in place.list("objects/")} == held
    with pytest.raises(NotFoundError, match=first.name):
        Snapshots(place).named(first.name)


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_object_of_a_bundle_is_named_and_left_out(
    store: LocalStore, place: LocalStore, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "filled" / keys.model(MODEL) / "weights"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"x" + data[1:] if damage == "flipped" else data[:-1])
    snapshot = back_up(store, Snapshots(place))
    assert [keys.model(MODEL) in wrong for wrong in snapshot.damaged] == [True]
    assert not any(entry.key.startswith(keys.model(MODEL)) for entry in Snapshots(place).entries(snapshot))
    assert any(entry.key.startswith(keys.dataset(DATASET)) for entry in Snapshots(place).entries(snapshot))


def test_what_stands_alone_is_verified_too(store: LocalStore, place: LocalStore, tmp_path: Path) -> None:
    damaged = [margins(job(2).job_id, 1, 0), keys.job_spec(job(2).job_id), keys.access_token("ana")]
    for key in damaged:
        path = tmp_path / "filled" / key
        path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    snapshot = back_up(store, Snapshots(place))
    assert sorted(wrong.split()[0] for wrong in snapshot.damaged) == sorted(damaged)
    assert not {entry.key for entry in Snapshots(place).entries(snapshot)} & set(damaged)


def test_an_object_damaged_since_the_last_backup_is_still_whole_in_the_next(
    store: LocalStore, place: LocalStore, empty: LocalStore, tmp_path: Path
) -> None:
    back_up(store, Snapshots(place))
    before = contents(store)
    (tmp_path / "filled" / keys.model(MODEL) / "weights").write_bytes(b"x" * 5000)
    snapshot = back_up(store, Snapshots(place))
    restore(empty, Snapshots(place), snapshot)
    assert contents(empty) == before


def every_object(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))


@pytest.mark.promise("T3")
def test_every_flipped_object_of_a_backup_is_noticed(
    store: LocalStore, place: LocalStore, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    back_up(store, Snapshots(place))
    paths = every_object(tmp_path / "place")
    assert len(paths) > 10
    for number, path in enumerate(paths):
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        target = LocalStore(tmp_path / f"target-{number}")
        with pytest.raises(CorruptObjectError, match=r"objects/|snapshots/"):
            restore(target, Snapshots(place), Snapshots(place).named(None))
        path.write_bytes(data)
    figure(f"{len(paths)} of {len(paths)} flipped objects named")


def test_a_damaged_backup_is_mended_from_the_store(store: LocalStore, place: LocalStore, tmp_path: Path) -> None:
    snapshot = back_up(store, Snapshots(place))
    entry = next(entry for entry in Snapshots(place).entries(snapshot) if entry.key.endswith("weights"))
    path = tmp_path / "place" / "objects" / entry.sha256[:2] / entry.sha256
    path.write_bytes(b"x" * entry.size_bytes)
    snapshots = Snapshots(place)
    (wrong,) = verify(snapshots, snapshot)
    assert entry.key in wrong
    back_up(store, snapshots)
    assert verify(Snapshots(place), snapshot) == []


def test_a_restore_that_was_broken_off_goes_on(store: LocalStore, place: LocalStore, empty: LocalStore) -> None:
    snapshot = back_up(store, Snapshots(place))

    class BrokenOffError(Exception):
        pass

    def transfer(name: str, size_bytes: int) -> Callable[[int], None]:
        left = iter(range(4))

        def passed(count: int) -> None:
            if next(left, None) is None:
                raise BrokenOffError

        return passed

    with pytest.raises(BrokenOffError):
        restore(empty, Snapshots(place), snapshot, transfer=transfer)
    assert 0 < len(contents(empty)) < snapshot.objects
    assert not any(key.endswith(("spec.json", "manifest.json")) for key in contents(empty))
    restore(empty, Snapshots(place), snapshot)
    assert contents(empty) == contents(store)


@pytest.mark.parametrize("key", ["pins/model-other.json", f"pins/{MODEL}.json"])
def test_a_store_that_holds_something_else_is_refused(
    store: LocalStore, place: LocalStore, empty: LocalStore, key: str
) -> None:
    snapshot = back_up(store, Snapshots(place))
    empty.put(key, b"something else")
    with pytest.raises(FailedPreconditionError, match=key):
        restore(empty, Snapshots(place), snapshot)
    assert contents(empty) == {key: b"something else"}


def test_a_newer_format_is_refused(store: LocalStore, place: LocalStore) -> None:
    snapshot = back_up(store, Snapshots(place))
    place.put(f"snapshots/{snapshot.name}.json", documents.seal({}, version=2))
    with pytest.raises(UnknownFormatError, match=r"snapshots/.* has format 2.*upgrade"):
        Snapshots(place).named(None)


@pytest.mark.parametrize("name", ["../x", "latest", ""])
def test_a_name_that_is_none_is_refused(place: LocalStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="snapshot's name"):
        Snapshots(place).named(name)
    with pytest.raises(NotFoundError, match="no backup here"):
        Snapshots(place).named(None)


def test_datasets_and_models_keep_their_order(place: LocalStore, tmp_path: Path, empty: LocalStore) -> None:
    store = LocalStore(tmp_path / "filled")
    for number in (3, 1, 2):  # neither the order of ids nor its reverse
        prefix = keys.model(f"model-{number}")
        bundle.publish(store, prefix, files(tmp_path / f"model-{number}", weights=b"%d" % number), metadata={})
        os.utime(tmp_path / "filled" / prefix / "manifest.json", (number * 10 % 29,) * 2)
    restore(empty, Snapshots(place), back_up(store, Snapshots(place)))
    order = [list_newest(each, keys.MODELS, page_size=9, page_token="")[0] for each in (store, empty)]
    assert order[0] == order[1]


class BusyStore(LocalStore):
    """A store whose other users do a step after every so many calls, the first after so many; listed as S3 lists."""

    def __init__(self, root: Path, steps: Iterator[Any], *, after: int, every: int) -> None:
        super().__init__(root)
        self._steps, self._every, self._calls = steps, every, every - after

    def _step(self) -> None:
        self._calls += 1
        if self._calls > 0 and self._calls % self._every == 0:
            next(self._steps, None)

    def head(self, key: str) -> Any:
        found = super().head(key)
        self._step()
        return found

    def get_file(self, key: str, path: Path, *, passed: Callable[[int], None] = lambda count: None) -> str:
        self._step()
        return super().get_file(key, path, passed=passed)

    def get(self, key: str) -> bytes:
        self._step()
        return super().get(key)

    def list(self, prefix: str) -> Iterator[Any]:
        last, listed = "", super().list
        while info := next((info for info in listed(prefix) if info.key > last), None):
            yield info
            self._step()
            last = info.key


def life(store: LocalStore, directory: Path) -> Iterator[Any]:
    """A job's life, with another that waits for it, in the order in which workers and the gateway write."""
    first, second = job(0), job(7, depends_on=(job(0).job_id,))
    write_spec(store, first)
    yield
    write_spec(store, second)
    yield
    for attempt in (1, 2, 3):
        checkpoints = CheckpointStore(store, first.job_id, attempt=attempt)
        checkpoints.take_ownership()
        yield
        for step in (attempt * 10, attempt * 10 + 5):
            store.put(margins(first.job_id, attempt, step), MARGINS)
            yield
            store.put(ledger(first.job_id, step, attempt), LEDGER)
            yield
            content = files(directory / f"{attempt}-{step}", state=b"%d" % step, more=b"more")
            checkpoints.publish(step, content, metadata={})
            yield
            checkpoints.prune(keep=1)
            yield
    model = "model-" + "7" * 32
    bundle.publish(store, keys.model(model), files(directory / "made", weights=b"made"), metadata={})
    yield
    write_result(store, first.job_id, JobState.SUCCEEDED, JobResult(model_id=model), "")
    yield
    stored_time = bundle.read_manifest(store, keys.model(MODEL)).stored_time
    withdrawn = withdraw(store, keys.model(MODEL), stored_time=stored_time)  # may it be deleted? it may not
    yield
    withdrawn.put_back()


@pytest.mark.promise("D8")
@pytest.mark.parametrize(("before", "every"), [(0, 1), (0, 5), (8, 2), (31, 3)])
@pytest.mark.parametrize("after", [*range(0, 60, 6), *range(60, 180, 40)])
def test_a_backup_of_a_store_in_use_lacks_nothing_that_it_needs(
    tmp_path: Path, place: LocalStore, before: int, after: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.storage.backup._PARALLEL_TRANSFERS", 1)
    writer = LocalStore(tmp_path / "filled")
    fill(writer, tmp_path)
    steps = life(writer, tmp_path / "life")
    for _ in range(before):
        next(steps)
    store = BusyStore(tmp_path / "filled", steps, after=after, every=every)
    snapshot = back_up(store, Snapshots(place))
    assert snapshot.damaged == ()
    restored = LocalStore(tmp_path / "restored")
    restore(restored, Snapshots(place), snapshot)
    found = contents(restored)
    jobs = {key.split("/")[1] for key in found if key.startswith("jobs/")}
    assert keys.model(MODEL) + "/manifest.json" in found
    assert before < 8 or any(key.startswith(keys.checkpoints(job(0).job_id)) for key in found)
    for job_id in jobs:
        spec = documents.decode(found[keys.job_spec(job_id)], key="spec")
        assert set(spec["depends_on"]) <= jobs
        if keys.job_result(job_id) in found and (result := documents.decode(found[keys.job_result(job_id)], key="")):
            assert bundle.find_intact(restored, keys.model(result["result"]["model_id"]))
        owner = documents.decode(found.get(keys.job_owner(job_id), b'{"attempt": 0}'), key="owner")["attempt"]
        written = [int(key.split("/a")[-1][:5]) for key in found if key.startswith(f"jobs/{job_id}/margins/")]
        assert all(attempt <= owner for attempt in written)
        for key in [key for key in found if key.startswith(f"jobs/{job_id}/checkpoints/") and "manifest" in key]:
            step, attempt = int(key.split("/step-")[1][:8]), int(key.split("/a")[1][:5])
            assert attempt <= owner
            assert ledger(job_id, step, attempt) in found
            assert bundle.find_intact(restored, keys.checkpoint(job_id, step=step, attempt=attempt))
