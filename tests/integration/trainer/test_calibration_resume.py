"""What a policy job found out about margins at its first step holds for all its attempts."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from madpo.ports import Claim
from madpo.storage.artifacts import open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Job, JobKind, JobState, PreferencePair
from madpo.worker.workspace import Run, Workspace
from madpo_trainer.ranks import OneRank
from madpo_trainer.run import TrainingRun
from madpo_trainer.settings import TrainerSettings
from tests.model_directories import save_directory

JOB = "job-" + "7" * 32
WORDS = ("the", "film", "was", "good", "bad", ".")
MARGINS = (0.3, 1.1, -0.4, 2.2, 0.9, 1.7, -0.1, 0.6, 1.3, 0.2, 3.1, -1.9)
PAIRS = [
    PreferencePair(f"the {first}", f"{second} good", f"{second} bad", reward_margin=margin, row=row)
    for row, (first, second, margin) in enumerate(
        zip(WORDS * 2, WORDS[1:] + WORDS + WORDS[:1], MARGINS, strict=True),
        start=1,
    )
]


class Site:
    """A store with a model, and attempts of one job over pairs that may change in between."""

    def __init__(self, home, model, tokenizer):
        self.home, self.store = home, LocalStore(home / "store")
        save_directory(model, tokenizer, home / "model")
        published, _ = ModelStore(self.store, home / "cache").publish(
            home / "model", display_name="toy", kind="causal_lm"
        )
        self.model = {"model_id": published.model_id}
        (home / "scratch").mkdir()

    def attempt(self, number, pairs, *, method):
        """Run an attempt to its end; its last word."""
        stored, _ = DatasetStore(self.store).write(
            pairs, kind=DatasetKind.PREFERENCE, display_name="pairs", scratch=self.home / "scratch"
        )
        spec = {
            "model": self.model,
            "dataset": stored.dataset_id,
            "eval_dataset": stored.dataset_id,
            "method": method,
            "margin": {"source": "dataset", "temperature": "fit"},
            "training": {"global_batch_size": 4, "max_tokens": 32, "lora": {"rank": 2}},
        }
        job = Job(JOB, JobKind.POLICY_TRAINING, JobState.RUNNING, spec, attempt=number)
        workspace = Workspace(self.home / f"attempt-{number}", Claim(job, number, "worker"))
        settings = TrainerSettings(
            store_url=f"file://{self.home / 'store'}",
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
            workspace=self.home,
        )
        TrainingRun(Run.open(workspace.directory), settings, OneRank()).execute()
        return workspace.outcome()

    def calibration(self):
        with open_artifact(self.store, JOB, "calibration.json") as stream:
            return stream.read()


@pytest.fixture
def site(tmp_path, make_toy_lm, make_toy_tokenizer):
    return Site(tmp_path, make_toy_lm(), make_toy_tokenizer())


@pytest.mark.parametrize("tau", ["auto", {"quantile": 0.7}])
def test_a_resumed_job_reads_the_numbers_and_does_not_find_them_again(site, tau):
    method = {"name": "madpo", "params": {"tau": tau}}
    first = site.attempt(1, PAIRS, method=method).result.summary
    found = site.calibration()

    other = [replace(pair, reward_margin=7 * pair.reward_margin) for pair in PAIRS]
    second = site.attempt(2, other, method=method).result.summary

    assert first["calibration"]["temperature"]["value"] != 1
    assert isinstance(first["method"]["params"]["tau"], float)
    assert second["method"] == first["method"]
    assert second["calibration"] == first["calibration"]
    assert site.calibration() == found
    fresh = site_of(site, "fresh").attempt(1, other, method=method).result.summary
    assert fresh["calibration"]["temperature"]["value"] == pytest.approx(
        7 * first["calibration"]["temperature"]["value"]
    )


def site_of(site, name):
    """An empty store beside another, with the same model."""
    home = site.home / name
    home.mkdir()
    copy = Site.__new__(Site)
    copy.home, copy.store, copy.model = home, LocalStore(home / "store"), site.model
    (home / "scratch").mkdir()
    ModelStore(copy.store, home / "cache").publish(site.home / "model", display_name="toy", kind="causal_lm")
    return copy
