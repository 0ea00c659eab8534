"""The training loop over a tiny linear objective, with a real checkpoint store."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from madpo.data.order import Schedule
from madpo.errors import FailedPreconditionError, NonFiniteError
from madpo.jobs.training import TrainingParameters
from madpo.models.packed.capability import Layout
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.local import LocalStore
from madpo.types import Job, JobKind, JobState
from madpo.worker.workspace import Run
from madpo_trainer import loop as loop_module
from madpo_trainer.held_out import HeldOutEvaluation
from madpo_trainer.loop import TrainingLoop
from madpo_trainer.memory import note_shortage, noted_shortage
from madpo_trainer.micro_batches import MicroBatches
from madpo_trainer.ranks import OneRank
from madpo_trainer.state import TrainingState, load_state

JOB = Job("job-" + "1" * 32, JobKind.SUPERVISED_TRAINING, JobState.RUNNING, {}, attempt=1)
ROWS = 24


class Regression:
    """Least squares with dropout on the inputs, so that randomness matters."""

    def __init__(self, *, bad_row=None):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.inputs, self.targets = torch.randn(ROWS, 3), torch.randn(ROWS, 1)
        self.lengths = [1 + index % 5 for index in range(ROWS)]
        self.longest = 5
        self.dropout = 0.0
        if bad_row is not None:
            self.inputs[bad_row] = float("nan")

    def start(self, step):
        pass

    def begin(self, step, rows):
        return RegressionStep(self, rows)

    def idle(self, row=0):
        return 0.0 * self.model(self.inputs[:1]).sum()

    def evaluate(self):
        return {}

    def summary(self):
        return {}

    def tensors(self):
        return {"method": {"mean": torch.ones(())}, "reference": {}}

    def close(self):
        pass


class RegressionStep:
    def __init__(self, objective, rows):
        self.objective, self.rows = objective, torch.tensor(rows)

    def loss(self, places):
        rows = self.rows[list(places)]
        inputs = nn.functional.dropout(self.objective.inputs[rows], self.objective.dropout)
        return (self.objective.model(inputs) - self.objective.targets[rows]).square().sum() / len(self.rows)

    def finish(self):
        return {"loss": 0.0}

    def row_ids(self, places):
        rows = self.rows[list(places)].tolist()
        return [f"row {row}" for row in sorted(rows, key=lambda row: bool(self.objective.inputs[row].isfinite().all()))]


def make_loop(
    tmp_path,
    objective,
    *,
    micro_batch_tokens=8,
    state=None,
    ranks=None,
    evaluate=dict,
    checkpoint_every_s=math.inf,
    attempt=1,
    store=None,
    **fields,
):
    parameters = TrainingParameters(
        global_batch_size=8,
        **{"checkpoint_every_steps": 100, "optimizer": {"learning_rate": 0.05}, "precision": "fp32", **fields},
    )
    schedule = Schedule.plan(rows=ROWS, batch_size=8, seed=0, epochs=4, max_steps=None)
    state = state or TrainingState()
    directory = tmp_path / "run"
    directory.mkdir(parents=True, exist_ok=True)
    store = store or LocalStore(tmp_path / "store")
    checkpoints = CheckpointStore(store, JOB.job_id, attempt=attempt)
    checkpoints.take_ownership()

    def save_model(path):
        path.mkdir()
        (path / "config.json").write_text("{}")

    return TrainingLoop(
        run=Run(directory, JOB),
        ranks=ranks or OneRank(),
        objective=objective,
        micro_batches=MicroBatches(Layout("packed"), budget_tokens=micro_batch_tokens),
        parameters=parameters,
        schedule=schedule,
        state=state,
        metrics=[],
        held_out=HeldOutEvaluation(evaluate, parameters=parameters, state=state, total_steps=schedule.total_steps),
        checkpoints=checkpoints,
        save_model=save_model,
        take_record=lambda step: [],
        store_record=lambda: None,
        note_shortage=partial(note_shortage, LocalStore(tmp_path / "store"), JOB.job_id),
        checkpoint_every_s=checkpoint_every_s,
    )


def weights(objective):
    return torch.cat([parameter.detach().flatten() for parameter in objective.model.parameters()])


def test_micro_batches_add_up_to_one_big_batch(tmp_path):
    whole, split = Regression(), Regression()

    assert make_loop(tmp_path / "a", whole, micro_batch_tokens=100).execute()
    assert make_loop(tmp_path / "b", split, micro_batch_tokens=6).execute()

    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-6)


def test_reports_add_up_to_every_step_however_seldom_they_are_and_also_after_a_checkpoint(tmp_path):
    def intervals(directory):
        lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
        reports = [json.loads(data)["metrics"] for name, data in lines if name == "progress"]
        return [(report["interval/steps"], report["interval/rows"]) for report in reports]

    loop = make_loop(tmp_path / "a", Regression(), log_every_steps=5)
    assert loop.execute()
    resumed = TrainingState(step=6, counters={"rows": 48.0, "step_s": 3.0, "margin_wait_s": 1.0})
    assert make_loop(tmp_path / "b", Regression(), log_every_steps=5, state=resumed).execute()

    assert intervals(tmp_path / "a" / "run") == [(5, 40), (5, 40), (2, 16)]
    assert intervals(tmp_path / "b" / "run") == [(4, 32), (2, 16)]
    seconds = [row["time/step_s"] for row in loop.metrics]
    assert 0 < sum(seconds) <= loop.state.counters["step_s"]


def test_every_step_has_a_rate_also_the_first_and_a_run_that_goes_on_has_the_same_ones(tmp_path):
    loop = make_loop(tmp_path / "a", Regression(), optimizer={"learning_rate": 0.05, "warmup_steps": 3})
    assert loop.execute()
    resumed = make_loop(
        tmp_path / "b", Regression(), optimizer={"learning_rate": 0.05, "warmup_steps": 3}, state=TrainingState(step=2)
    )
    assert resumed.execute()

    rates = [row["learning_rate"] for row in loop.metrics]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert rates[2:] == [row["learning_rate"] for row in resumed.metrics]


def test_a_non_finite_loss_is_refused_before_the_weights_move_and_names_the_row(tmp_path):
    objective = Regression(bad_row=11)
    loop = make_loop(tmp_path, objective)

    with pytest.raises(NonFiniteError) as caught:
        loop.execute()

    assert caught.value.pair_ids[0] == "row 11"
    assert torch.isfinite(weights(objective)).all()


def test_weights_that_the_last_step_made_non_finite_are_never_saved(tmp_path):
    loop = make_loop(tmp_path, Regression(), optimizer={"learning_rate": 1e308, "warmup_ratio": 0.0}, max_steps=1)
    loop._schedule = Schedule.plan(rows=ROWS, batch_size=8, seed=0, epochs=4, max_steps=1)

    with pytest.raises(NonFiniteError, match="non-finite weights after step 1, not saved"):
        loop.execute()

    assert CheckpointStore(LocalStore(tmp_path / "store"), JOB.job_id, attempt=1).latest() is None


def test_a_stopped_run_leaves_a_checkpoint_from_which_it_ends_with_the_same_weights(tmp_path):
    straight = Regression()
    straight.dropout = 0.5
    make_loop(tmp_path / "straight", straight).execute()

    first = Regression()
    first.dropout = 0.5
    loop = make_loop(tmp_path, first, log_every_steps=1)
    stop_after(loop, tmp_path / "run" / "stop", step=5)
    assert not loop.execute()
    (tmp_path / "run" / "stop").unlink()

    directory = tmp_path / "resume"
    checkpoint, _ = CheckpointStore(LocalStore(tmp_path / "store"), JOB.job_id, attempt=1).latest_valid(directory)
    state, tensors, metrics = load_state(directory)
    assert checkpoint.step == state.step == len(metrics) == 5
    assert tensors == {"method": {"mean": 1}}
    resumed = Regression()
    resumed.dropout = 0.5
    resumed.model.load_state_dict(first.model.state_dict())
    again = make_loop(tmp_path, resumed, state=state, attempt=2)
    again.restore(directory)
    assert again.execute()

    assert torch.equal(weights(resumed), weights(straight))


def stop_after(loop, path, *, step):
    report = loop._report

    def report_and_stop(row, seconds_per_step):
        report(row, seconds_per_step)
        if row["step"] == step:
            path.write_text("drain")

    loop._report = report_and_stop


class ShortOfMemory(Regression):
    """Runs out of memory in passes over too many rows, as torch does on a CPU."""

    def __init__(self, *, most_rows):
        super().__init__()
        self.most_rows = most_rows

    def begin(self, step, rows):
        return ShortStep(self, rows)


class ShortStep(RegressionStep):
    def loss(self, places):
        if len(places) > self.objective.most_rows:
            torch.empty(1 << 60)
        return super().loss(places)


def test_a_step_that_runs_out_of_memory_is_done_in_halves_with_the_same_result(tmp_path):
    roomy, short = Regression(), ShortOfMemory(most_rows=5)
    assert make_loop(tmp_path / "a", roomy, micro_batch_tokens=24).execute()
    loop = make_loop(tmp_path / "b", short, micro_batch_tokens=24)

    assert loop.execute()

    torch.testing.assert_close(weights(short), weights(roomy), rtol=1e-5, atol=1e-6)
    assert loop.summary()["memory_shortage"] == {"step": 1, "before": 24, "after": 12}
    # A run that goes on from here does not try again.
    resumed = make_loop(tmp_path / "c", Regression(), micro_batch_tokens=24, state=loop.state)
    assert resumed._micro_batches.budget_tokens == 12


def test_memory_that_runs_out_again_halves_the_step_again(tmp_path):
    roomy, short = Regression(), ShortOfMemory(most_rows=1)
    assert make_loop(tmp_path / "a", roomy, micro_batch_tokens=24).execute()
    loop = make_loop(tmp_path / "b", short, micro_batch_tokens=24)

    assert loop.execute()

    torch.testing.assert_close(weights(short), weights(roomy), rtol=1e-5, atol=1e-6)
    assert loop.summary()["memory_shortage"] == {"step": 6, "before": 24, "after": 1}


def test_memory_that_is_short_of_a_single_row_ends_the_job_and_says_what_to_do(tmp_path):
    loop = make_loop(tmp_path, ShortOfMemory(most_rows=0), micro_batch_tokens=24)

    with pytest.raises(FailedPreconditionError, match=r"step 1 with a single row in a micro-batch.*micro_batch_tokens"):
        loop.execute()


def test_memory_that_is_short_of_the_optimizer_is_told_before_the_first_step(tmp_path, monkeypatch):
    def empty_like(tensor, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch, "empty_like", empty_like)

    with pytest.raises(FailedPreconditionError, match=r"what AdamW remembers, 0\.0 GiB .*use lora"):
        make_loop(tmp_path, Regression())


def test_ranks_that_must_keep_in_step_leave_a_shortage_to_the_next_attempt(tmp_path):
    ranks = OneRank()
    ranks.in_step = True
    loop = make_loop(tmp_path, ShortOfMemory(most_rows=5), micro_batch_tokens=24, ranks=ranks)

    with pytest.raises(RuntimeError, match="allocate memory"):
        loop.execute()

    noted = noted_shortage(LocalStore(tmp_path / "store"), JOB.job_id)
    assert noted == {"step": 1, "before": 24, "after": 12}


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    objective = Regression()
    objective.targets = torch.randn(ROWS, 2, 3)

    with pytest.raises(RuntimeError, match="size"):
        make_loop(tmp_path, objective).execute()


def test_a_run_that_logs_seldom_still_says_that_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("madpo_trainer.loop._LONGEST_SILENCE_S", -1.0)
    loop = make_loop(tmp_path, Regression(), log_every_steps=5)

    assert loop.execute()

    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    reported = [json.loads(data) for kind, data in events if kind == "progress"]
    assert [each["step"] for each in reported] == [*range(1, 13)]
    assert (
        [each["step"] for each in reported if each["metrics"]] == [row["step"] for row in loop.metrics] == [5, 10, 12]
    )
    assert sum(each["metrics"].get("interval/steps", 0.0) for each in reported) == 12


@pytest.mark.parametrize(
    ("step_s", "checkpoint_s", "published"),
    [
        (100.0, 0.0, [3, 6, 9, 12]),  # every 300 seconds
        (400.0, 0.0, list(range(1, 13))),  # each step takes longer than that
        (100.0, 30.0, [3, 9, 12]),  # of the time between two, a twentieth at most: 570 seconds
        (1.0, 0.0, [12]),  # the end
    ],
)
def test_checkpoints_come_by_time_as_well_and_take_a_twentieth_of_it_at_most(
    tmp_path, monkeypatch, step_s, checkpoint_s, published
):
    now = 0.0
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now)

    class Slow(Regression):
        def begin(self, step, rows):
            nonlocal now
            now += step_s
            loop._uploads.settle()  # the store is faster than a step
            return super().begin(step, rows)

        def tensors(self):
            nonlocal now
            now += checkpoint_s
            return super().tensors()

    loop = make_loop(tmp_path, Slow(), checkpoint_every_s=300.0)
    assert loop.execute()

    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [json.loads(data)["step"] for name, data in lines if name == "checkpoint"] == published


def test_training_is_the_same_however_often_checkpoints_come(tmp_path):
    seldom, often = Regression(), Regression()
    assert make_loop(tmp_path / "a", seldom).execute()
    assert make_loop(tmp_path / "b", often, checkpoint_every_s=1e-9).execute()
    assert torch.equal(weights(seldom), weights(often))
