"""Twenty steps of training in packed rows against twenty steps of TRL's DPOTrainer: the same losses."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import models
from bench.training import ours
from bench.training.task import Task

if find_spec("trl") is None and not os.environ.get("CI"):
    pytest.skip("TRL is not installed: pip install -c constraints.txt '.[trl]'", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

STEPS = 20
TASK = Task(
    size="tiny", batch=4, micro_batch=2, steps=5, rounds=4, length=24, learning_rate=1e-3, seed=3, max_grad_norm=1e9
)


def our_losses(variant: str) -> list[float]:
    results: list[dict] = []
    rows = ours.encode(TASK.pairs(), models.tokenizer(TASK.model.vocabulary))
    ours.train(TASK, rows, variant=variant, done=results.append)
    return [loss for result in results for loss in result["losses"]]


def test_losses_of_packed_rows_are_those_of_trl(tmp_path: Path) -> None:
    from bench.peers import trl

    trainer = trl.make_trainer(TASK, "trl", directory=tmp_path)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    ours = our_losses("packed")

    assert len(ours) == len(theirs) == STEPS + 1
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert theirs[-1] < 0.5 * theirs[0], "a curve that does not move says nothing"
