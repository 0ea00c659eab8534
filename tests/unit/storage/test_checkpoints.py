"""Checkpoints: whole or absent, and never from an attempt that was replaced."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import AlreadyExistsError, CorruptObjectError, InvalidArgumentError, StaleAttemptError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import CheckpointStore, list_checkpoints
from madpo.storage.local import LocalStore
from madpo.storage.results import delete_job, write_result, write_spec
from madpo.storage.spared import spare
from madpo.types import Checkpoint, FileEntry, Job, JobKind, JobState

JOB = "job-" + "0" * 32
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def make_files(directory: Path, content: str) -> Path:
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "model.safetensors").write_text(content)
    (directory / "optimizer.safetensors").write_text(content * 2)
    (directory / "state.json").write_text("{}")
    return directory


def owner(store: ObjectStore, attempt: int) -> CheckpointStore:
    checkpoints = CheckpointStore(store, JOB, attempt=attempt)
    checkpoints.take_ownership()
    return checkpoints


def publish(checkpoints: CheckpointStore, step: int, tmp_path: Path, content: str = "weights") -> Checkpoint:
    return checkpoints.publish(step, make_files(tmp_path / "source", content), metadata={"step": step})


def found(store: ObjectStore) -> list[tuple[int, int]]:
    return [(checkpoint.step, checkpoint.attempt) for checkpoint in list_checkpoints(store, JOB)]


def test_a_checkpoint_comes_back_as_it_was_published(store: LocalStore, tmp_path: Path) -> None:
    checkpoints = owner(store, 1)
    assert checkpoints.latest() is None

    published = publish(checkpoints, 20, tmp_path)

    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.job_id, latest.step, latest.attempt) == (JOB, 20, 1)
    assert latest.size_bytes == published.size_bytes == 7 + 14 + 2
    assert latest.create_time == pytest.approx(published.create_time, abs=60)
    assert checkpoints.fetch(latest, tmp_path / "copy") == {"step": 20}
    assert (tmp_path / "copy/model/model.safetensors").read_text() == "weights"


def test_the_latest_is_the_newest_step_of_any_attempt(store: LocalStore, tmp_path: Path) -> None:
    first = owner(store, 1)
    publish(first, 9, tmp_path)
    publish(first, 10, tmp_path)
    second = owner(store, 2)
    publish(second, 10, tmp_path)
    publish(second, 100_000_000, tmp_path)

    assert found(store) == [(100_000_000, 2), (10, 2), (10, 1), (9, 1)]


def test_several_store_the_files_of_one_checkpoint(store: LocalStore, tmp_path: Path) -> None:
    leader, other = (CheckpointStore(store, JOB, attempt=1, holder="run") for _ in range(2))
    stranger = CheckpointStore(store, JOB, attempt=1)
    leader.take_ownership()
    part = tmp_path / "part"
    part.mkdir()
    (part / "optimizer-00002-of-00002.safetensors").write_text("moments")
    prefix = keys.checkpoint(JOB, step=20, attempt=1)

    def stored_meanwhile() -> tuple[FileEntry, ...]:
        assert store.head(f"{prefix}/state.json") is not None
        files = other.upload(20, part)
        assert found(store) == []
        return files

    with pytest.raises(StaleAttemptError):
        stranger.upload(20, part)
    assert [*store.list(f"{prefix}/")] == []
    published = leader.publish(20, make_files(tmp_path / "source", "weights"), metadata={}, others=stored_meanwhile)

    leader.fetch(published, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "optimizer-00002-of-00002.safetensors").read_text() == "moments"
    assert (tmp_path / "fetched" / "state.json").read_text() == "{}"
    assert leader.publish(20, tmp_path / "source", metadata={}, others=lambda: other.upload(20, part)) == published


def test_files_that_somebody_else_did_not_store_are_missed(store: LocalStore, tmp_path: Path) -> None:
    leader = owner(store, 1)
    part = tmp_path / "part"
    part.mkdir()
    (part / "optimizer-00002-of-00002.safetensors").write_text("moments")
    files = leader.upload(20, part)
    store.delete(f"{keys.checkpoint(JOB, step=20, attempt=1)}/{files[0].path}")

    with pytest.raises(CorruptObjectError):
        leader.publish(20, make_files(tmp_path / "source", "weights"), metadata={}, others=lambda: files)
    assert found(store) == []


def test_a_checkpoint_is_not_rewritten(store: LocalStore, tmp_path: Path) -> None:
    checkpoints = owner(store, 1)
    assert publish(checkpoints, 1, tmp_path) == publish(checkpoints, 1, tmp_path)

    with pytest.raises(AlreadyExistsError):
        publish(checkpoints, 1, tmp_path, "other")


@pytest.mark.promise("J4")
def test_a_replaced_attempt_can_neither_publish_nor_prune_nor_return(store: LocalStore, tmp_path: Path) -> None:
    old = owner(store, 1)
    publish(old, 1, tmp_path)
    owner(store, 3)

    for act in (old.take_ownership, lambda: publish(old, 2, tmp_path), lambda: old.prune(1)):
        with pytest.raises(StaleAttemptError, match=f"attempt 1 does not own {JOB}: attempt 3 does"):
            act()
    assert found(store) == [(1, 1)]


@pytest.mark.promise("J4")
def test_of_two_runs_that_were_given_one_number_the_first_is_the_attempt(store: LocalStore, tmp_path: Path) -> None:
    """As a queue that was set back to an older copy may number them."""
    first, second = owner(store, 1), CheckpointStore(store, JOB, attempt=1)
    publish(first, 1, tmp_path)

    for act in (second.take_ownership, lambda: publish(second, 2, tmp_path), lambda: second.prune(1)):
        with pytest.raises(StaleAttemptError, match="attempt 1 of another worker does; this one must stop"):
            act()

    publish(first, 2, tmp_path)
    owner(store, 2)
    with pytest.raises(StaleAttemptError):
        publish(first, 3, tmp_path)


def test_an_attempt_that_never_took_ownership_cannot_publish(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StaleAttemptError):
        publish(CheckpointStore(store, JOB, attempt=1), 1, tmp_path)


def test_taking_ownership_again_changes_nothing(store: LocalStore, tmp_path: Path) -> None:
    checkpoints = owner(store, 1)
    before = store.get(keys.job_owner(JOB))
    publish(checkpoints, 1, tmp_path)

    checkpoints.take_ownership()

    assert store.get(keys.job_owner(JOB)) == before


class InterruptedStore(LocalStore):
    """Lets a newer attempt take over right before or after this one's manifest is written."""

    def __init__(self, root: Path, *, before: bool) -> None:
        super().__init__(root)
        self._before = before
        self.is_quiet = True
        self._newer = CheckpointStore(LocalStore(root), JOB, attempt=2)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.is_quiet or not key.endswith("manifest.json"):
            return super().put_if_absent(key, data)
        if self._before:
            self._newer.take_ownership()
        created = super().put_if_absent(key, data)
        if not self._before:
            self._newer.take_ownership()
        return created


@pytest.mark.parametrize("before", [True, False])
def test_a_takeover_around_the_manifest_is_noticed(tmp_path: Path, before: bool) -> None:
    store = InterruptedStore(tmp_path / "store", before=before)
    overtaken = owner(store, 1)
    publish(overtaken, 5, tmp_path)
    store.is_quiet = False

    with pytest.raises(StaleAttemptError):
        publish(overtaken, 6, tmp_path)

    # What the new owner did not see when it began does not come up later, not even for its own successors.
    store.is_quiet = True
    seen = [(5, 1)] if before else [(6, 1), (5, 1)]
    assert found(store) == seen
    owner(store, 3)
    assert found(store) == seen


@pytest.mark.parametrize("round_", range(5))
def test_a_publication_that_returned_is_seen_by_the_next_owner(store: LocalStore, tmp_path: Path, round_: int) -> None:
    old = owner(store, 1)
    published: list[int] = []
    begun = threading.Event()

    def work() -> None:
        with suppress(StaleAttemptError):
            for step in range(1, 1000):
                publish(old, step, tmp_path)
                published.append(step)
                begun.set()

    worker = threading.Thread(target=work)
    worker.start()
    assert begun.wait(60)
    new = owner(store, 2)
    first_look = new.latest()
    worker.join()

    assert first_look is not None
    assert new.latest() == first_look
    assert first_look.step >= published[-1]
    assert published[-1] < 999


@pytest.mark.promise("J4")
def test_of_attempts_racing_for_ownership_the_newest_wins(store: LocalStore) -> None:
    barrier = threading.Barrier(6)
    stale: list[int] = []

    def take(attempt: int) -> None:
        barrier.wait()
        try:
            owner(store, attempt)
        except StaleAttemptError:
            stale.append(attempt)

    threads = [threading.Thread(target=take, args=(attempt,)) for attempt in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 6 not in stale
    with pytest.raises(StaleAttemptError, match="attempt 6 does"):
        owner(store, 5)


class CountingStore(LocalStore):
    """Dies before its n-th write or deletion; counts them."""

    def __init__(self, root: Path, *, die_at: int) -> None:
        super().__init__(root)
        self._die_at = die_at
        self._lock_count = threading.Lock()
        self.writes = 0

    def _count(self) -> None:
        with self._lock_count:
            self.writes += 1
            if self.writes == self._die_at:
                os._exit(77)

    def _write(self, *args: Any, **kwargs: Any) -> str | None:
        self._count()
        etag = super()._write(*args, **kwargs)
        self._count()
        return etag

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)
        self._count()


def train(root: Path, source: Path, die_at: int) -> None:
    """Attempt 2: take over, publish step 20, prune to the newest."""
    checkpoints = owner(CountingStore(root, die_at=die_at), 2)
    publish(checkpoints, 20, source, "new")
    checkpoints.prune(1)
    os._exit(0)


@pytest.mark.promise("T2")
def test_a_crash_at_any_point_leaves_a_whole_latest_checkpoint(tmp_path: Path, figure: Callable[[str], None]) -> None:
    seen = set()
    for die_at in range(1, 100):
        store = LocalStore(tmp_path / f"store-{die_at}")
        publish(owner(store, 1), 10, tmp_path, "old")

        process = FORK.Process(target=train, args=(tmp_path / f"store-{die_at}", tmp_path, die_at))
        process.start()
        process.join()

        latest = CheckpointStore(store, JOB, attempt=3).latest_valid(tmp_path / "copy")
        assert latest is not None
        content = (tmp_path / "copy/model/model.safetensors").read_text()
        assert (latest[0].step, content) in {(10, "old"), (20, "new")}
        successor = owner(store, 3)
        assert successor.latest() == latest[0]
        publish(successor, 20, tmp_path, "new")
        successor.prune(1)
        assert {key for key in (info.key for info in store.list("")) if "/a00001/" in key} == set()
        seen.add(latest[0].step)
        if process.exitcode == 0:
            break
        assert process.exitcode == 77

    # Two owner writes, three files and a manifest, then four deletions: each dies before and after.
    assert die_at == 2 * (2 + 3 + 1 + 4) + 1
    assert seen == {10, 20}
    figure(f"killed at {die_at - 1} points of a save, each with a whole checkpoint and a successor")


def make_user(store: ObjectStore, step: int, number: int = 1) -> str:
    """A job that names a checkpoint."""
    user = f"job-{number:032x}"
    spec = {"model": {"job_id": JOB, "step": step}}
    write_spec(store, Job(user, JobKind.EVALUATION, JobState.PENDING, spec))
    spare(store, JOB, step, user=user)
    return user


@pytest.mark.parametrize("state", [None, JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED, "deleted"])
def test_what_another_job_names_is_not_pruned_until_that_has_succeeded_or_is_gone(
    store: LocalStore, tmp_path: Path, state: Any
) -> None:
    checkpoints = owner(store, 1)
    for step in (10, 20, 30, 40):
        publish(checkpoints, step, tmp_path)
    users = [make_user(store, 20, 1), make_user(store, 20, 2)]
    for user in users:
        if state == "deleted":
            delete_job(store, user)
        elif state is not None:
            write_result(store, user, state, None, "")

    checkpoints.prune(1)

    is_kept = state in (None, JobState.FAILED, JobState.CANCELLED)
    assert found(store) == ([(40, 1), (20, 1)] if is_kept else [(40, 1)])


@pytest.mark.parametrize("number", range(1, 6))
def test_a_checkpoint_that_is_named_while_it_is_pruned_is_whole_or_not_found(
    store: LocalStore, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names it says so before it looks whether it is there."""
    checkpoints = owner(store, 1)
    for step in (10, 20):
        publish(checkpoints, step, tmp_path)
    delete, looks = store.delete, []
    left = iter(range(1, 100))

    def name_late(key: str) -> None:
        if next(left) == number:
            make_user(store, 10)
            looks.append((10, 1) in found(store))
        delete(key)

    monkeypatch.setattr(store, "delete", name_late)
    checkpoints.prune(1)

    assert not looks or not looks[0] or found(store) == [(20, 1), (10, 1)]
    if (10, 1) in found(store):
        bundle.fetch(store, keys.checkpoint(JOB, step=10, attempt=1), tmp_path / "copy")


def flip_a_bit(data: bytes) -> bytes:
    return bytes([data[0] ^ 16]) + data[1:]


@pytest.mark.promise("T3")
@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1]])
@pytest.mark.parametrize("name", ["manifest.json", "model/model.safetensors", "optimizer.safetensors", "state.json"])
def test_resuming_passes_over_a_corrupt_checkpoint(
    store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any
) -> None:
    checkpoints = owner(store, 1)
    publish(checkpoints, 10, tmp_path, "old")
    latest = publish(checkpoints, 20, tmp_path, "new")
    key = f"{keys.checkpoint(JOB, step=20, attempt=1)}/{name}"
    store.put(key, damage(store.get(key)))

    with pytest.raises(CorruptObjectError, match=key):
        checkpoints.fetch(latest, tmp_path / "copy")
    with caplog.at_level(logging.ERROR):
        valid = checkpoints.latest_valid(tmp_path / "copy")

    assert valid is not None
    assert (valid[0].step, valid[1]) == (10, {"step": 10})
    assert (tmp_path / "copy/model/model.safetensors").read_text() == "old"
    assert [key in record.error for record in caplog.records] == [True]  # type: ignore[attr-defined]


def test_without_an_intact_checkpoint_there_is_none(store: LocalStore, tmp_path: Path) -> None:
    checkpoints = owner(store, 1)
    publish(checkpoints, 10, tmp_path)
    store.delete(f"{keys.checkpoint(JOB, step=10, attempt=1)}/state.json")

    assert checkpoints.latest_valid(tmp_path / "copy") is None
    assert not (tmp_path / "copy").exists()


def test_pruning_keeps_the_newest_steps(store: LocalStore, tmp_path: Path) -> None:
    first = owner(store, 1)
    for step in (10, 20, 30):
        publish(first, step, tmp_path)
    second = owner(store, 2)
    for step in (30, 40):
        publish(second, step, tmp_path)

    second.prune(2)

    assert found(store) == [(40, 2), (30, 2), (30, 1)]
    with pytest.raises(InvalidArgumentError, match="at least one"):
        second.prune(0)


def test_pruning_removes_what_older_attempts_left_unfinished_but_not_its_own(store: LocalStore, tmp_path: Path) -> None:
    publish(owner(store, 1), 10, tmp_path)
    abandoned = keys.checkpoint(JOB, step=20, attempt=1)
    uploading = keys.checkpoint(JOB, step=20, attempt=2)
    for prefix in (abandoned, uploading):
        store.put(f"{prefix}/state.json", b"{}")

    owner(store, 2).prune(1)

    assert found(store) == [(10, 1)]
    assert list(store.list(f"{abandoned}/")) == []
    assert [info.key for info in store.list(f"{uploading}/")] == [f"{uploading}/state.json"]


def test_checkpoints_work_on_every_store(object_store: ObjectStore, tmp_path: Path) -> None:
    old = owner(object_store, 1)
    publish(old, 10, tmp_path, "old")
    new = owner(object_store, 2)
    publish(new, 20, tmp_path, "new")

    with pytest.raises(StaleAttemptError):
        publish(old, 30, tmp_path)
    assert found(object_store) == [(20, 2), (10, 1)]
    valid = new.latest_valid(tmp_path / "copy")
    assert valid is not None
    assert (tmp_path / "copy/model/model.safetensors").read_text() == "new"
    bundle.delete(object_store, keys.checkpoint(JOB, step=20, attempt=2))
    assert found(object_store) == [(10, 1)]
