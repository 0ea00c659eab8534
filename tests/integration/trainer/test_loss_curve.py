"""Twenty steps of DPO have the losses of the plain way and of TRL's trainer, step by step."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import models
from bench.training import ours
from bench.training.task import Task
from madpo.worker.workspace import Run

STEPS = 20
TASK = Task(size="tiny", batch=4, micro_batch=2, steps=STEPS, rounds=1, length=48, learning_rate=2e-3, beta=0.5)


class RecordingRun(Run):
    """Keeps the loss of every step."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ours.JOB)
        self.losses: list[float] = []

    def progress(self, progress) -> None:
        self.losses.append(progress.metrics["loss"])


def our_losses(directory: Path, variant: str) -> list[float]:
    directory.mkdir()
    run = RecordingRun(directory)
    rows = ours.encode(TASK.pairs(), models.tokenizer(TASK.model.vocabulary))
    ours.make_loop(TASK, rows, variant=variant, run=run, directory=directory).execute()
    return run.losses


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> list[float]:
    return our_losses(tmp_path_factory.mktemp("losses") / "packed", "packed")


@pytest.mark.parametrize("variant", ["plain", "unshared"])
def test_packed_rows_have_the_losses_of_other_layouts(packed, tmp_path, variant):
    assert len(packed) == 1 + STEPS
    assert packed == pytest.approx(our_losses(tmp_path / variant, variant), abs=1e-4)
    # It is a curve: what stands still would agree with anything.
    assert max(packed) - min(packed) > 0.1


@pytest.mark.skipif(find_spec("trl") is None and not os.environ.get("CI"), reason="TRL is not installed")
@pytest.mark.filterwarnings("ignore")  # of its own parts
def test_packed_rows_have_the_losses_of_trl(packed, tmp_path):
    from bench.peers import trl

    trainer = trl.make_trainer(TASK, "trl_pre", directory=tmp_path)
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert packed == pytest.approx(losses, abs=1e-4)
