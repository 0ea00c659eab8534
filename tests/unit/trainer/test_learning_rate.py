"""The learning rate of every step of a job."""

import pytest
import torch
from transformers import get_scheduler

from madpo.errors import InvalidArgumentError
from madpo.jobs.registry import parse_spec
from madpo.jobs.training import OptimizerParameters
from madpo.types import JobKind
from madpo_trainer.learning_rate import learning_rate


def rates(total, **fields):
    parameters = OptimizerParameters(learning_rate=1.0, **fields)
    return [learning_rate(parameters, step, total) for step in range(total)]


def test_the_first_step_is_taken_and_warm_up_climbs_to_the_peak():
    assert rates(6, warmup_steps=3, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(6, warmup_ratio=0.5, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total", [1, 2, 20])
def test_without_warm_up_the_first_step_is_at_the_peak(schedule, total):
    assert rates(total, warmup_ratio=0, schedule=schedule)[0] == rates(total, warmup_steps=0, schedule=schedule)[0] == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_job_of_one_step_trains(schedule):
    assert rates(1, schedule=schedule) == [1]
    assert rates(1, warmup_steps=9, schedule=schedule) == [0.1]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_behind_the_warm_up_rates_are_those_of_transformers(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=12)
    expected = []
    for _ in range(12):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()

    assert rates(16, warmup_steps=4, schedule=schedule)[4:] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_falls_to_its_floor_and_not_below(schedule):
    falling = rates(1000, warmup_steps=0, schedule=schedule, min_learning_rate_ratio=0.2)

    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.2, abs=1e-3)
    assert min(falling) >= 0.2


def test_warm_up_is_said_once():
    spec = {"model": "model-" + "a" * 32, "dataset": "dataset-" + "b" * 32}
    both = spec | {"training": {"optimizer": {"warmup_ratio": 0.1, "warmup_steps": 3}}}

    with pytest.raises(InvalidArgumentError, match="give warmup_ratio or warmup_steps, not both"):
        parse_spec(JobKind.REWARD_TRAINING, both)


@pytest.mark.parametrize("given", [{}, {"warmup_steps": 0}, {"warmup_ratio": 0}, {"warmup_ratio": None}])
def test_warm_up_survives_being_stored(given):
    parameters = OptimizerParameters(**given)

    assert OptimizerParameters(**parameters.model_dump()) == parameters
    # What is null is not on the wire.
    on_wire = {name: value for name, value in parameters.model_dump().items() if value is not None}
    assert OptimizerParameters(**on_wire) == parameters
