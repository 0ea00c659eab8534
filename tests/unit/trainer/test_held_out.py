"""Evaluation on held-out rows while training goes on, over the loop of `test_training_loop`."""

import json

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from madpo.errors import InvalidArgumentError
from madpo.jobs.registry import parse_spec
from madpo.jobs.training import TrainingParameters
from madpo.storage.checkpoints import CheckpointStore, list_checkpoints
from madpo.storage.local import LocalStore
from madpo.types import JobKind
from madpo.worker.phase import Interrupted
from madpo_trainer.held_out import describe_publication, take_weights
from madpo_trainer.state import TrainingState, load_state
from tests.unit.trainer.test_training_loop import JOB, Regression, make_loop


def scripted(*losses, interrupted_at=None):
    """Gives one loss after the other; is interrupted once in the place of one."""
    left, place = list(losses), [0]

    def evaluate():
        place[0] += 1
        if place[0] == interrupted_at:
            raise Interrupted
        return {"loss": left.pop(0), "rewards/accuracy": 0.5}

    return evaluate


def evaluations(loop):
    return [(row["step"], row["eval/loss"]) for row in loop.metrics if "eval/loss" in row]


def test_figures_stand_in_the_row_of_their_step_and_are_reported(tmp_path):
    loop = make_loop(tmp_path, Regression(), evaluate=scripted(3.0, 2.0, 1.0), eval_every_steps=5, log_every_steps=3)

    assert loop.execute()

    # Of twelve steps also the last is looked at; a row is there although logging was not due.
    assert evaluations(loop) == [(5, 3.0), (10, 2.0), (12, 1.0)]
    assert [row["step"] for row in loop.metrics] == [3, 5, 6, 9, 10, 12]
    assert "loss" in loop.metrics[-1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    reports = [json.loads(data) for name, data in lines if name == "progress"]
    assert [each["step"] for each in reports if "eval/loss" in each["metrics"]] == [5, 10, 12]


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    fields = {"eval_every_steps": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 2}
    loop = make_loop(tmp_path, Regression(), evaluate=scripted(3.0, 1.0, 2.0, 2.0, 2.0, 2.0), **fields)

    assert loop.execute()

    store = LocalStore(tmp_path / "store")
    assert [checkpoint.step for checkpoint in list_checkpoints(store, JOB.job_id)] == [12, 11, 4]
    assert describe_publication(loop.state, TrainingParameters(eval_every_steps=2)) == {
        "published_step": 12,
        "best": {"step": 4, "metric": "loss", "value": 1.0},
        "stopped_early": False,
    }
    best = describe_publication(loop.state, TrainingParameters(eval_every_steps=2, publish="best"))
    assert best["published_step"] == 4


def test_weights_of_the_best_step_are_taken_back():
    model, best = Regression().model, nn.Linear(3, 1)

    take_weights(model, best)

    assert torch.equal(model.weight, best.weight)


def test_training_stops_early_when_the_best_lies_too_far_behind(tmp_path):
    loop = make_loop(
        tmp_path, Regression(), evaluate=scripted(3.0, 2.0, 2.0, 2.5), eval_every_steps=1, early_stopping_patience=2
    )

    assert loop.execute()

    assert (loop.state.step, loop.state.stopped_early, loop.state.best["step"]) == (4, True, 2)
    # One that goes on from its last checkpoint has nothing left to do.
    again = make_loop(tmp_path / "again", Regression(), state=loop.state, eval_every_steps=1, early_stopping_patience=2)
    assert again.execute()
    assert again.state.step == 4


def test_of_accuracies_more_is_better(tmp_path):
    values = iter([0.5, 0.7, 0.6])
    loop = make_loop(
        tmp_path,
        Regression(),
        evaluate=lambda: {"loss": 1.0, "rewards/accuracy": next(values)},
        eval_every_steps=4,
        best_metric="rewards/accuracy",
    )

    assert loop.execute()

    assert loop.state.best["step"] == 8


def test_a_figure_that_there_is_not_is_refused_with_those_there_are(tmp_path):
    loop = make_loop(tmp_path, Regression(), evaluate=scripted(1.0), eval_every_steps=1, best_metric="accuracy")

    with pytest.raises(InvalidArgumentError, match=r"best_metric: no figure 'accuracy' .* loss, rewards/accuracy"):
        loop.execute()


def test_a_run_stopped_in_the_middle_of_an_evaluation_does_it_when_it_goes_on(tmp_path):
    straight = make_loop(tmp_path / "straight", Regression(), evaluate=scripted(3.0, 1.0, 2.0), eval_every_steps=4)
    assert straight.execute()
    stopped = make_loop(
        tmp_path, Regression(), evaluate=scripted(3.0, interrupted_at=2), eval_every_steps=4, log_every_steps=1
    )
    assert not stopped.execute()

    CheckpointStore(LocalStore(tmp_path / "store"), JOB.job_id, attempt=1).latest_valid(tmp_path / "resume")
    state, _, metrics = load_state(tmp_path / "resume")
    assert (state.step, state.evaluated_step) == (8, 4)
    objective = Regression()
    objective.model.load_state_dict(stopped._objective.model.state_dict())
    resumed = make_loop(tmp_path, objective, state=state, evaluate=scripted(1.0, 2.0), eval_every_steps=4, attempt=2)
    resumed.metrics += metrics
    resumed.restore(tmp_path / "resume")
    assert resumed.execute()

    assert evaluations(resumed) == evaluations(straight) == [(4, 3.0), (8, 1.0), (12, 2.0)]
    assert resumed.state.best == straight.state.best
    assert resumed.state.evaluations_since_best == straight.state.evaluations_since_best == 1


def test_without_the_wish_nothing_is_evaluated(tmp_path):
    loop = make_loop(tmp_path, Regression(), evaluate=scripted())

    assert loop.execute()

    assert describe_publication(loop.state, TrainingParameters()) == {}
    assert loop.state == TrainingState(
        step=12, ledger_parts=[], counters=loop.state.counters, largest=loop.state.largest
    )


@pytest.mark.parametrize(
    "training", [{"early_stopping_patience": 2}, {"publish": "best"}, {"eval_every_steps": 0}, {"publish": "first"}]
)
def test_wishes_that_do_not_go_together_are_refused(training):
    with pytest.raises(ValidationError):
        TrainingParameters(**training)


def test_evaluation_needs_held_out_rows():
    spec = {"model": "model-" + "a" * 32, "dataset": "dataset-" + "b" * 32, "training": {"eval_every_steps": 5}}

    with pytest.raises(InvalidArgumentError, match="eval_every_steps needs eval_dataset"):
        parse_spec(JobKind.POLICY_TRAINING, spec)
    assert TrainingParameters(eval_every_steps=5, early_stopping_patience=2).publishes_best
    assert not TrainingParameters(eval_every_steps=5, early_stopping_patience=2, publish="last").publishes_best
