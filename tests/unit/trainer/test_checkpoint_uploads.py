"""Checkpoints are stored while training goes on, over the loop of `test_training_loop`."""

import json
import threading

import pytest

from madpo.errors import FailedPreconditionError, NonFiniteError
from madpo.storage.checkpoints import list_checkpoints
from madpo.storage.local import LocalStore
from madpo.worker.workspace import Run
from madpo_trainer.checkpoint_uploads import CheckpointUploads
from tests.unit.trainer.test_held_out import scripted
from tests.unit.trainer.test_training_loop import JOB, Regression, make_loop, stop_after

PATIENCE_S = 120
STEPS = 12


class GatedStore(LocalStore):
    """Takes no file of a checkpoint before its gate is open; remembers whose files it was given."""

    def __init__(self, root):
        super().__init__(root)
        self.gate, self.files = threading.Event(), []

    def put_file(self, key, path):
        assert self.gate.wait(PATIENCE_S), "training waits for the upload, or the upload for ever"
        self.files.append(step_of(key))
        return super().put_file(key, path)


class FailingStore(LocalStore):
    """Refuses the files of one step's checkpoint."""

    step = 4

    def put_file(self, key, path):
        if step_of(key) == self.step:
            raise FailedPreconditionError("the bucket is locked")
        return super().put_file(key, path)


class Opening(Regression):
    """Opens the gate of a store as a step begins."""

    def __init__(self, store, *, at, **options):
        super().__init__(**options)
        self.store, self.at = store, at

    def begin(self, step, rows):
        if step == self.at:
            self.store.gate.set()
        return super().begin(step, rows)


def step_of(key):
    """`.../checkpoints/step-00000004/a00001/...`"""
    return int(key.split("/step-")[1].split("/")[0])


def published(tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    return [json.loads(data)["step"] for name, data in lines if name == "checkpoint"]


def kept(tmp_path):
    return [checkpoint.step for checkpoint in list_checkpoints(LocalStore(tmp_path / "store"), JOB.job_id)]


def test_steps_are_made_while_a_checkpoint_is_stored_and_the_end_waits_for_the_last(tmp_path):
    store = GatedStore(tmp_path / "store")
    loop = make_loop(tmp_path, Opening(store, at=7), store=store, checkpoint_every_steps=4)

    assert loop.execute()

    assert published(tmp_path) == [4, 8, 12]
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    counters = loop.state.counters
    assert counters["checkpoint_upload_s"] > 0
    assert counters["checkpoint_write_s"] > 0
    assert counters["checkpoint_wait_s"] >= 0


def test_there_is_one_checkpoint_at_a_time_and_none_by_steps_is_left_out(tmp_path):
    store = GatedStore(tmp_path / "store")
    store.gate.set()

    class Looking(Regression):
        def begin(self, step, rows):
            assert len(list((tmp_path / "run").glob("checkpoint-*"))) <= 1
            return super().begin(step, rows)

    assert make_loop(tmp_path, Looking(), store=store, checkpoint_every_steps=1, keep_checkpoints=20).execute()

    assert published(tmp_path) == list(range(1, STEPS + 1))
    assert store.files == sorted(store.files)


def test_a_checkpoint_by_time_is_not_begun_while_another_is_stored(tmp_path):
    store = GatedStore(tmp_path / "store")

    loop = make_loop(tmp_path, Opening(store, at=6), store=store, checkpoint_every_s=1e-9)
    assert loop.execute()

    # Of seven steps the first alone had one: training did not stand for it.
    assert published(tmp_path)[0] == 1
    assert published(tmp_path)[1] >= 7
    assert published(tmp_path)[-1] == STEPS


def test_a_store_that_refuses_a_checkpoint_ends_the_job_with_its_reason(tmp_path):
    loop = make_loop(tmp_path, Regression(), store=FailingStore(tmp_path / "store"), checkpoint_every_steps=2)

    with pytest.raises(FailedPreconditionError, match="the bucket is locked"):
        loop.execute()

    assert published(tmp_path) == kept(tmp_path) == [2]
    assert 4 <= loop.state.step <= 6  # the next checkpoint waits for it and hears of it


def test_the_last_checkpoint_must_be_stored_too(tmp_path):
    store = FailingStore(tmp_path / "store")
    store.step = STEPS

    with pytest.raises(FailedPreconditionError, match="the bucket is locked"):
        make_loop(tmp_path, Regression(), store=store).execute()


def test_a_run_that_is_stopped_during_an_upload_leaves_that_checkpoint_and_its_last_step(tmp_path):
    store = GatedStore(tmp_path / "store")
    loop = make_loop(tmp_path, Opening(store, at=5), store=store, checkpoint_every_steps=4, log_every_steps=1)
    stop_after(loop, tmp_path / "run" / "stop", step=6)

    assert not loop.execute()

    assert published(tmp_path) == [4, 6]
    assert kept(tmp_path) == [6, 4]


def test_an_error_in_a_step_does_not_cost_the_checkpoint_that_is_on_its_way(tmp_path, monkeypatch):
    store, settle = GatedStore(tmp_path / "store"), CheckpointUploads.settle

    def open_and_settle(uploads):
        assert published(tmp_path) == []
        store.gate.set()
        settle(uploads)

    monkeypatch.setattr(CheckpointUploads, "settle", open_and_settle)
    objective = Regression()
    loop = make_loop(tmp_path, objective, store=store, checkpoint_every_steps=4)
    begin = objective.begin

    def spoil(step, rows):
        if step == 5:
            objective.inputs[rows[0]] = float("nan")
        return begin(step, rows)

    objective.begin = spoil
    with pytest.raises(NonFiniteError):
        loop.execute()

    assert published(tmp_path) == kept(tmp_path) == [4]


def test_what_was_the_best_when_a_checkpoint_was_written_is_kept_beside_it(tmp_path, monkeypatch):
    """At step 6 a better one is found while the checkpoint of step 4 is stored, whose state names step 2."""
    store, found = GatedStore(tmp_path / "store"), {}
    begin, finish, told = CheckpointUploads.begin, CheckpointUploads.finish, Run.checkpoint_published

    def begin_shut(uploads, step, directory, **options):
        if step == 4:
            store.gate.clear()
        begin(uploads, step, directory, **options)

    def open_and_finish(uploads):
        store.gate.set()
        return finish(uploads)

    def look(run, step):
        found[step] = kept(tmp_path)
        told(run, step)

    monkeypatch.setattr(CheckpointUploads, "begin", begin_shut)
    monkeypatch.setattr(CheckpointUploads, "finish", open_and_finish)
    monkeypatch.setattr(Run, "checkpoint_published", look)
    fields = {"eval_every_steps": 2, "checkpoint_every_steps": 4, "keep_checkpoints": 1}
    evaluate = scripted(1.0, 2.0, 0.5, 2.0, 2.0, 2.0)
    loop = make_loop(tmp_path, Regression(), store=store, evaluate=evaluate, **fields)

    assert loop.execute()

    assert loop.state.best["step"] == 6
    assert found == {2: [2], 4: [4, 2], 6: [6], 8: [8, 6], 12: [12, 6]}
