"""Notes of removals that were damaged: what is whole is shown again, nothing is removed, and the same can be stored."""

import logging
import os
from pathlib import Path

import pytest

from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.check import check_store
from madpo.storage.local import LocalStore
from madpo.storage.recovery import Recovery
from madpo.storage.withdrawals import withdrawn
from madpo.types import StoreFinding
from tests.contract.stepping import PREFIX, objects, require_whole, store_it, take_out

NOTE = keys.withdrawal(PREFIX)


def spoil_end(data: bytes) -> bytes:
    """What its own digest no longer fits; the manifest in it is whole."""
    return data[:-20]


def spoil_manifest(data: bytes) -> bytes:
    place = data.index(b"create_time")
    return data[:place] + b"C" + data[place + 1 :]


def withdraw_and_spoil(store: ObjectStore, directory: Path, damage: object) -> set[str]:
    store_it(store, directory)
    before = objects(store)
    take_out(store)
    store.put(NOTE, damage(store.get(NOTE)))  # type: ignore[operator]
    return before


def recover(store: ObjectStore) -> None:
    now = [0.0]
    recovery = Recovery(store, abandoned_s=60, clock=lambda: now[0])
    recovery.run()
    now[0] = 60
    recovery.run()


def findings(store: ObjectStore, *, repair: bool = False) -> list[tuple[str, bool, str]]:
    said = [each for each in check_store(store, repair=repair) if isinstance(each, StoreFinding)]
    return [(each.key, each.repaired, each.detail) for each in said if each.verdict == "damaged"]


def test_housekeeping_shows_again_what_a_damaged_note_keeps_out_of_sight(
    object_store: ObjectStore, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = withdraw_and_spoil(object_store, directory, spoil_end)

    with caplog.at_level(logging.WARNING):
        recover(object_store)

    assert objects(object_store) == before
    require_whole(object_store, tmp_path / "copy")
    assert getattr(caplog.records[-1], "outcome", None) == f"{PREFIX} is there again"


def test_files_of_a_removal_that_had_begun_stay_and_the_same_can_be_stored_again(
    object_store: ObjectStore, directory: Path, tmp_path: Path
) -> None:
    withdraw_and_spoil(object_store, directory, spoil_end)
    object_store.delete(f"{PREFIX}/a")

    recover(object_store)

    assert objects(object_store) == {f"{PREFIX}/b", f"{PREFIX}/c"}
    assert store_it(object_store, directory)
    require_whole(object_store, tmp_path / "copy")


def test_a_damaged_note_of_what_is_in_sight_goes(object_store: ObjectStore, directory: Path, tmp_path: Path) -> None:
    """Its remover died before it took the manifest away."""
    store_it(object_store, directory)
    object_store.put(NOTE, b"damaged")

    recover(object_store)

    require_whole(object_store, tmp_path / "copy")


@pytest.mark.parametrize("damage", [spoil_manifest, lambda data: b""], ids=["manifest", "all of it"])
def test_a_note_that_has_lost_the_manifest_stays_until_somebody_gives_it_up(
    tmp_path: Path, directory: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path / "store")
    withdraw_and_spoil(store, directory, damage)

    recover(store)
    assert list(withdrawn(store)) == [PREFIX]
    assert "`madpo store check --repair` gives it up" in caplog.text
    assert "--repair ends that in some minutes" in findings(store, repair=True)[0][2]
    assert list(withdrawn(store)) == [PREFIX]

    os.utime(tmp_path / "store" / NOTE, (0, 0))
    [(key, repaired, detail)] = findings(store)
    assert (key, repaired) == (NOTE, False)
    assert f"it keeps {PREFIX} out of sight: --repair ends that" in detail
    assert findings(store, repair=True) == [
        (NOTE, True, f"{PREFIX} is given up, as its manifest is lost: the same can be stored again")
    ]
    assert findings(store) == []
    assert objects(store) == {f"{PREFIX}/{name}" for name in "abc"}
    assert store_it(store, directory)
    require_whole(store, tmp_path / "copy")


def test_a_check_that_repairs_shows_what_is_whole(tmp_path: Path, directory: Path) -> None:
    store = LocalStore(tmp_path / "store")
    before = withdraw_and_spoil(store, directory, spoil_end)
    os.utime(tmp_path / "store" / NOTE, (0, 0))

    assert findings(store, repair=True) == [(NOTE, True, f"{PREFIX} is there again")]

    assert objects(store) == before


def test_a_remover_that_was_only_slow_stops_where_its_damaged_note_was_gone_on_with(
    tmp_path: Path, directory: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    store_it(store, directory)
    slow = take_out(store)
    store.put(NOTE, spoil_end(store.get(NOTE)))
    recover(store)

    with pytest.raises(Exception, match="another has taken that over"):
        slow.remove()

    require_whole(store, tmp_path / "copy")
    assert bundle.find_whole(store, PREFIX)
