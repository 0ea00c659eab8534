"""Files that belong to no manifest are collected, and never cost an upload that goes on."""

from contextlib import suppress
from pathlib import Path

import pytest

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage.listing import list_unfinished
from madpo.storage.local import LocalStore
from madpo.storage.recovery import Recovery
from madpo.storage.withdrawals import withdraw_unfinished, withdrawn
from tests.contract.stepping import (
    FILES,
    PREFIX,
    KilledError,
    SteppingStore,
    die,
    halt_both,
    objects,
    require_whole,
    store_it,
    take_out,
)

LATER = 2.0**40


def give_up(store: ObjectStore) -> None:
    """As an upload does that dies after two files."""
    for name in ("a", "b"):
        store.put(f"{PREFIX}/{name}", FILES[name])


def collect(store: ObjectStore) -> None:
    withdraw_unfinished(store, PREFIX, before=LATER).remove()


def test_what_was_given_up_is_told_from_what_is_finished(object_store: ObjectStore, directory: Path) -> None:
    store_it(object_store, directory)
    object_store.put("datasets/e/part", b"1")
    object_store.put("datasets/e/sub/manifest.json", b"2")

    found = list_unfinished(object_store, "datasets")

    assert {name: [info.key for info in infos] for name, infos in found.items()} == {
        "datasets/e": ["datasets/e/part", "datasets/e/sub/manifest.json"]
    }


def test_what_grows_from_attempt_to_attempt_of_a_job_was_not_given_up(object_store: ObjectStore) -> None:
    files = [
        "jobs/job-1/artifacts/a00001/report.json",
        "jobs/job-1/checkpoints/step-00000001/a00001/model/weights",
        "jobs/job-1/checkpoints/step-00000002/a00001/manifest.json",
        "jobs/job-1/checkpoints/step-00000002/a00001/model/weights",
        "jobs/job-1/generations/part-00000-1.jsonl",
        "jobs/job-1/spec.json",
        "reference_logps/1/00000/manifest.json",
        "reference_logps/1/00000/part",
        "reference_logps/1/00001/part",
        "tokens/dataset-1/1/part",
        "tokens/dataset-1/2/manifest.json",
        "tokens/dataset-1/2/part",
    ]
    for key in files:
        object_store.put(key, b"1")

    found = [list(list_unfinished(object_store, root)) for root in ("jobs", "reference_logps", "tokens")]

    assert found == [
        ["jobs/job-1/artifacts/a00001", "jobs/job-1/checkpoints/step-00000001/a00001"],
        ["reference_logps/1/00001"],
        ["tokens/dataset-1/1"],
    ]


def test_it_goes_and_the_same_can_be_stored_again(object_store: ObjectStore, directory: Path, tmp_path: Path) -> None:
    give_up(object_store)

    collect(object_store)

    assert objects(object_store) == set()
    with pytest.raises(NotFoundError):
        collect(object_store)
    assert store_it(object_store, directory)
    require_whole(object_store, tmp_path / "copy")


def test_what_is_finished_younger_or_out_of_sight_stays(object_store: ObjectStore, directory: Path) -> None:
    give_up(object_store)
    newest = max(info.modified_time for info in object_store.list(f"{PREFIX}/"))
    with pytest.raises(FailedPreconditionError, match="newer files"):
        withdraw_unfinished(object_store, PREFIX, before=newest - 0.001)
    store_it(object_store, directory)
    with pytest.raises(FailedPreconditionError, match="finished"):
        collect(object_store)
    withdrawal = take_out(object_store)
    with pytest.raises(FailedPreconditionError, match="being removed already"):
        collect(object_store)
    withdrawal.put_back()

    assert objects(object_store) == {f"{PREFIX}/{name}" for name in (*FILES, "manifest.json")}


@pytest.mark.parametrize("number", range(1, 25))
def test_a_collection_between_any_two_steps_of_an_upload_costs_nothing(
    tmp_path: Path, directory: Path, number: int
) -> None:
    other = LocalStore(tmp_path / "store")
    give_up(other)

    def come() -> None:
        with suppress(NotFoundError, FailedPreconditionError):
            collect(other)

    store_it(SteppingStore(tmp_path / "store", number, come), directory)

    require_whole(other, tmp_path / "copy")


@pytest.mark.parametrize("collection_step", range(1, 12))
@pytest.mark.parametrize("upload_step", range(1, 12))
def test_an_upload_and_a_collection_that_halt_between_any_two_steps_of_each_end_whole(
    tmp_path: Path, directory: Path, upload_step: int, collection_step: int
) -> None:
    other = LocalStore(tmp_path / "store")
    give_up(other)

    halt_both(
        tmp_path / "store",
        directory,
        upload_step=upload_step,
        removal_step=collection_step,
        remove=collect,
        runs_on_s=0.1,
    )

    require_whole(other, tmp_path / "copy")


@pytest.mark.parametrize("is_stored_again", [True, False])
@pytest.mark.parametrize("number", range(1, 14))
def test_a_collector_that_dies_leaves_nothing_in_the_way(
    tmp_path: Path, directory: Path, number: int, is_stored_again: bool
) -> None:
    store = LocalStore(tmp_path / "store")
    give_up(store)
    with suppress(KilledError):
        collect(SteppingStore(tmp_path / "store", number, die))
    Recovery(store, abandoned_s=0).run()

    assert list(withdrawn(store)) == []
    assert objects(store) in ({f"{PREFIX}/a", f"{PREFIX}/b"}, set())
    if is_stored_again:
        assert store_it(store, directory)
        require_whole(store, tmp_path / "copy")
