"""Whole trainings that are evaluated on the way."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from madpo.errors import InvalidArgumentError
from madpo.jobs.registry import KINDS
from madpo.storage import keys
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.datasets import DatasetStore
from madpo.types import DatasetKind, JobKind
from tests.integration.trainer.training_site import PAIRS, job_id

FIELDS = {
    "max_steps": 6,
    "global_batch_size": 8,
    "max_tokens": 32,
    "checkpoint_every_steps": 100,
    "eval_every_steps": 2,
    "keep_checkpoints": 1,
}


@pytest.fixture(scope="module")
def contrary(site):
    """Held-out pairs of the opposite opinion: what is learnt makes them worse."""
    pairs = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    stored, _ = DatasetStore(site.store).write(
        pairs, kind=DatasetKind.PREFERENCE, display_name="", scratch=site.home / "scratch"
    )
    return stored.dataset_id


def train(site, contrary, name, *, pause_at=None, **training):
    spec = {
        "dataset": site.pairs,
        "eval_dataset": contrary,
        "method": {"name": "dpo", "params": {}},
        "training": {**FIELDS, "optimizer": {"learning_rate": 1e-2}, **training},
    }
    outcome = site.train(name, spec, pause_at=pause_at)
    assert outcome.kind == "succeeded", outcome.reason
    return outcome.result


def test_the_best_step_is_published_and_a_run_that_was_paused_finds_the_same(site, contrary):
    straight = train(site, contrary, "straight", publish="best")
    paused = train(site, contrary, "paused", publish="best", pause_at=2)

    assert paused.model_id == straight.model_id
    summary = straight.summary
    assert {name: paused.summary[name] for name in ("best", "published_step", "eval", "stopped_early")} == {
        name: summary[name] for name in ("best", "published_step", "eval", "stopped_early")
    }
    losses = {row["step"]: row["eval/loss"] for row in site.metrics("straight") if "eval/loss" in row}
    assert list(losses) == [2, 4, 6]
    best = min(losses, key=losses.__getitem__)
    assert best == 2
    assert summary["best"] == {"step": best, "metric": "loss", "value": losses[best]}
    assert summary["eval"]["loss"] == losses[best]
    assert set(summary["eval"]) == set(KINDS[JobKind.POLICY_TRAINING].held_out_figures)
    checkpoints = CheckpointStore(site.store, job_id("straight"), attempt=1)
    checkpoints.fetch(checkpoints.of_step(best), site.home / "best")
    kept = load_file(next((site.home / "best" / "model").glob("*.safetensors")))
    published = site.weights(straight.model_id)
    assert all(torch.equal(kept[name], tensor) for name, tensor in published.items())


def test_a_figure_that_there_is_not_ends_the_job_before_its_first_step(site, contrary):
    spec = {
        "dataset": site.pairs,
        "eval_dataset": contrary,
        "method": {"name": "dpo", "params": {}},
        "training": {**FIELDS, "best_metric": "accuracy"},
    }

    with pytest.raises(
        InvalidArgumentError, match=r"no figure 'accuracy' on the held-out rows; there are loss, .*rewards/accuracy"
    ):
        site.train("misnamed", spec)

    assert not list(site.store.list(f"{keys.checkpoints(job_id('misnamed'))}/"))


def test_the_last_step_is_published_unless_training_stops_early(site, contrary):
    last = train(site, contrary, "last")
    early = train(site, contrary, "early", early_stopping_patience=1)

    assert last.summary["published_step"] == 6
    assert last.summary["eval"]["loss"] == site.metrics("last")[-1]["eval/loss"]
    assert early.summary["stopped_early"]
    assert early.summary["published_step"] == early.summary["best"]["step"] < early.summary["steps"] < 6
