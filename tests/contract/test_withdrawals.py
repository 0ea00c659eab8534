"""Bundles that are removed while others need them or store the same again, over a directory and over S3."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys, mending
from madpo.storage.local import LocalStore
from madpo.storage.recovery import Recovery
from madpo.storage.withdrawals import settle, store_again, withdraw, withdrawn
from tests.contract.stepping import (
    OTHER,
    PREFIX,
    KilledError,
    SteppingStore,
    die,
    halt_both,
    objects,
    require_whole,
    store_it,
    stored_time,
    take_out,
)

UPLOADERS = 4


def test_what_is_withdrawn_is_not_found_and_is_put_back_as_it_was(object_store: ObjectStore, directory: Path) -> None:
    store_it(object_store, directory)
    before = objects(object_store)
    manifest = object_store.get(f"{PREFIX}/manifest.json")

    withdrawal = take_out(object_store)

    assert bundle.find_whole(object_store, PREFIX) is None
    assert list(withdrawn(object_store)) == [PREFIX]
    with pytest.raises(NotFoundError):
        take_out(object_store)
    withdrawal.put_back()
    assert objects(object_store) == before
    assert object_store.get(f"{PREFIX}/manifest.json") == manifest


def test_what_is_removed_is_gone_with_what_belongs_to_it(object_store: ObjectStore, directory: Path) -> None:
    store_it(object_store, directory)
    object_store.put(f"{OTHER}/e/part", b"")
    object_store.put("datasets/dd/part", b"")

    take_out(object_store).remove()

    assert objects(object_store) == {"datasets/dd/part"}


def test_storing_again_renews_the_time_and_nothing_else(object_store: ObjectStore, directory: Path) -> None:
    first, created = store_again(object_store, PREFIX, directory, metadata={"name": "first"})
    again, created_again = store_again(object_store, PREFIX, directory, metadata={"name": "second"})

    assert (created, created_again) == (True, False)
    assert (again.create_time, again.files, again.metadata["name"]) == (first.create_time, first.files, "first")
    assert again.stored_time > first.stored_time == first.create_time


def test_what_was_stored_again_since_it_was_decided_is_not_removed(object_store: ObjectStore, directory: Path) -> None:
    store_it(object_store, directory)
    decided = stored_time(object_store)
    store_it(object_store, directory)

    with pytest.raises(FailedPreconditionError, match="datasets/d was stored again just now"):
        withdraw(object_store, PREFIX, stored_time=decided)
    assert bundle.find_whole(object_store, PREFIX)
    assert list(withdrawn(object_store)) == []


@pytest.mark.parametrize("round_", range(5))
def test_an_upload_is_never_lost_to_a_removal_that_was_decided_before_it(
    object_store: ObjectStore, directory: Path, tmp_path: Path, round_: int
) -> None:
    """Whatever the order of their steps: what is stored once the uploads are over is whole."""
    store_it(object_store, directory)
    decided, barrier = stored_time(object_store), threading.Barrier(UPLOADERS + 2)

    def upload() -> None:
        barrier.wait()
        store_it(object_store, directory)

    def remove() -> None:
        barrier.wait()
        with suppress(FailedPreconditionError, NotFoundError):
            withdraw(object_store, PREFIX, stored_time=decided).remove()

    with ThreadPoolExecutor(UPLOADERS + 2) as pool:
        list(pool.map(lambda work: work(), [remove, *[upload] * UPLOADERS, remove]))

    require_whole(object_store, tmp_path / "copy")


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("number", range(1, 25))
def test_a_removal_between_any_two_steps_of_an_upload_costs_nothing(
    tmp_path: Path, directory: Path, number: int, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_PARALLEL_TRANSFERS", 1)
    monkeypatch.setattr(mending, "_READ_AT_ONCE", 1)
    other = LocalStore(tmp_path / "store")
    if is_there:
        store_it(other, directory)
        decided = stored_time(other)

    def remove() -> None:
        with suppress(NotFoundError, FailedPreconditionError):
            withdraw(other, PREFIX, stored_time=decided if is_there else stored_time(other)).remove()

    def come_and_go() -> None:
        """Another stores the same, and it is removed after that: the upload that is under way must notice."""
        if not is_there:
            store_it(other, directory)
        remove()

    store_it(SteppingStore(tmp_path / "store", number, come_and_go), directory)

    require_whole(other, tmp_path / "copy")


@pytest.mark.parametrize("number", range(1, 25))
def test_an_upload_between_any_two_steps_of_a_removal_is_kept(
    tmp_path: Path, directory: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have to wait until the removal is over, so it runs beside it."""
    other = LocalStore(tmp_path / "store")
    store_it(other, directory)
    decided = stored_time(other)
    with ThreadPoolExecutor(1) as pool:
        uploads = []

        def begin() -> None:
            uploads.append(pool.submit(store_it, other, directory))
            with suppress(TimeoutError):
                uploads[0].result(0.05)

        store = SteppingStore(tmp_path / "store", number, begin)
        with suppress(FailedPreconditionError, NotFoundError):
            withdraw(store, PREFIX, stored_time=decided).remove()
        if not uploads:
            begin()
        uploads[0].result(30)

    require_whole(other, tmp_path / "copy")


@pytest.mark.parametrize("removal_step", range(2, 12))
@pytest.mark.parametrize("upload_step", range(1, 10))
def test_an_upload_and_a_removal_that_halt_between_any_two_steps_of_each_end_whole(
    tmp_path: Path, directory: Path, upload_step: int, removal_step: int
) -> None:
    other = LocalStore(tmp_path / "store")
    store_it(other, directory)
    decided = stored_time(other)

    halt_both(
        tmp_path / "store",
        directory,
        upload_step=upload_step,
        removal_step=removal_step,
        remove=lambda store: withdraw(store, PREFIX, stored_time=decided).remove(),
        runs_on_s=0.15,
    )

    require_whole(other, tmp_path / "copy")


@pytest.mark.parametrize("removes", [True, False])
@pytest.mark.parametrize("number", range(1, 20))
def test_a_remover_that_dies_leaves_a_whole_bundle_or_none(
    tmp_path: Path, directory: Path, number: int, removes: bool
) -> None:
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    dying = SteppingStore(tmp_path / "store", number, die)
    with suppress(KilledError):
        withdrawal = withdraw(dying, PREFIX, stored_time=stored_time(store))
        withdrawal.remove() if removes else withdrawal.put_back()
    now = [0.0]
    recovery = Recovery(store, abandoned_s=60, clock=lambda: now[0])

    recovery.run()
    now[0] = 59
    recovery.run()
    seen = objects(store)
    now[0] = 60
    recovery.run()

    assert list(withdrawn(store)) == []
    if objects(store):
        require_whole(store, tmp_path / "copy")
        assert objects(store) >= seen - {keys.withdrawal(PREFIX)}
    else:
        assert removes


def test_a_removal_that_goes_on_is_left_to_its_remover(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.storage.withdrawals._HOLD_S", -1)
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    now = [0.0]
    recovery = Recovery(store, abandoned_s=60, clock=lambda: now[0])

    def look() -> None:
        recovery.run()
        now[0] += 59

    withdrawal = withdraw(store, PREFIX, stored_time=stored_time(store))
    look()
    deleted = store.delete
    with monkeypatch.context() as patched:
        patched.setattr(store, "delete", lambda key: (look(), deleted(key)))
        withdrawal.remove()

    assert objects(store) == set()


def test_a_remover_that_was_taken_for_dead_does_nothing_more(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    slow = [take_out(store)]
    Recovery(store, abandoned_s=0).run()
    slow.append(take_out(store))
    Recovery(store, abandoned_s=0).run()

    for act in (slow[0].remove, slow[1].put_back):
        with pytest.raises(FailedPreconditionError, match="another has taken that over"):
            act()
    require_whole(store, tmp_path / "copy")

    slow = [take_out(store)]
    Recovery(store, abandoned_s=0).run()
    take_out(store).remove()
    with pytest.raises(FailedPreconditionError, match="another has taken that over"):
        slow[0].put_back()
    assert objects(store) == set()


def test_a_manifest_that_a_slow_remover_takes_away_after_it_was_put_back_is_shown_again(
    tmp_path: Path, directory: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    slow = take_out(store)
    Recovery(store, abandoned_s=0).run()
    store.delete(f"{PREFIX}/manifest.json")

    with pytest.raises(FailedPreconditionError):
        slow.remove()

    require_whole(store, tmp_path / "copy")


def test_an_upload_waits_for_a_remover_that_died_and_ends_whole(tmp_path: Path, directory: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    take_out(store)
    with ThreadPoolExecutor(2) as pool:
        upload, settled = pool.submit(store_it, store, directory), pool.submit(settle, store, PREFIX)
        with pytest.raises(TimeoutError):
            upload.result(0.3)
        assert not settled.done()
        Recovery(store, abandoned_s=0).run()
        assert upload.result(30) is False
        settled.result(30)

    require_whole(store, tmp_path / "copy")


@pytest.mark.parametrize("lost", ["a", "manifest.json"])
def test_storing_again_mends_what_is_damaged_without_removing_anything(
    tmp_path: Path, directory: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that mend at once must not remove what the other has stored."""
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    store.put(f"{PREFIX}/{lost}", b"damaged")
    monkeypatch.setattr(store, "delete", lambda key: pytest.fail(f"{key} was removed"))

    assert store_it(store, directory)

    require_whole(store, tmp_path / "copy")
