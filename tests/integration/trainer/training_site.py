"""A store with a tiny model and data of every kind, and training jobs run in this process on one rank."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from madpo.ports import Claim
from madpo.storage.artifacts import open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Job, JobKind, JobState, PreferencePair, ResponseList
from madpo.worker.workspace import Outcome, Run, Workspace
from madpo_trainer.checkpoint_uploads import CheckpointUploads
from madpo_trainer.ranks import OneRank
from madpo_trainer.run import TrainingRun
from madpo_trainer.settings import TrainerSettings
from tests.model_directories import save_directory

WORDS = ("the", "film", "was", "good", ".")
TEXTS = [" ".join(WORDS[(3 * index + place) % 5] for place in range(1 + index % 6)) for index in range(20)]
PAIRS = [
    PreferencePair(
        "the film" if index % 2 else "the film was",
        text,
        f"was {text}",
        reward_margin=(index % 7) / 2 - 1,
        row=index + 1,
        gold=f"{text} good good .",
        chosen_uncertainty=index % 3 / 2,
        rejected_uncertainty=index % 5 / 4,
        semantic_distance=index % 4 / 2,
    )
    for index, text in enumerate(TEXTS)
]
"""With everything a dataset may say of a pair."""
LISTS = [
    ResponseList(
        pair.prompt,
        (pair.rejected, pair.chosen, *((f"bad {pair.chosen}",) if pair.row % 3 else ()), "bad ."),
        (0.0, 2.0, *((1.0,) if pair.row % 3 else ()), 0.5),
        row=pair.row,
    )
    for pair in PAIRS
]
"""Of three and of four responses."""

OUTER_LOOPS: Mapping[str, Mapping[str, Any]] = {
    "tr_dpo": {"every": 2},
    "apo_accel": {"iteration_steps": 2},
}
"""Parameters with which the reference moves within a few steps."""


def job_id(name: str) -> str:
    """One that a name stands for."""
    return f"job-{hashlib.md5(name.encode()).hexdigest()}"


@contextmanager
def stopping(run: Run, *, at: int | None) -> Iterator[None]:
    """A run that is asked to stop as soon as the checkpoint of a step is on its way."""
    begin = CheckpointUploads.begin

    def begin_and_stop(uploads: CheckpointUploads, step: int, directory: Path, **options: Any) -> None:
        begin(uploads, step, directory, **options)
        if step == at:
            (run.directory / "stop").write_text("drain")

    with patch.object(CheckpointUploads, "begin", begin_and_stop):
        yield


@dataclass(frozen=True)
class Site:
    """What jobs find."""

    home: Path
    model: Mapping[str, str]
    pairs: str
    lists: str

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.home / "store")

    @classmethod
    def make(cls, home: Path, model: Any, tokenizer: Any) -> "Site":
        """Store a model and the data."""
        store = LocalStore(home / "store")
        save_directory(model, tokenizer, home / "model")
        published, _ = ModelStore(store, home / "cache").publish(home / "model", display_name="tiny", kind="causal_lm")
        datasets = [
            DatasetStore(store).write(rows, kind=kind, display_name="data", scratch=home / "scratch")[0].dataset_id
            for rows, kind in ((PAIRS, DatasetKind.PREFERENCE), (LISTS, DatasetKind.LIST))
        ]
        return cls(home, {"model_id": published.model_id}, *datasets)

    def train(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        kind: JobKind = JobKind.POLICY_TRAINING,
        pause_at: int | None = None,
        first: int = 1,
    ) -> Outcome:
        """Run a job to its end; with `pause_at` it stops at the checkpoint of that step and goes on anew."""
        settings = TrainerSettings(
            store_url=f"file://{self.home / 'store'}",
            redis_url="redis://127.0.0.1:1/0",
            workspace=self.home / "work",
        )

        def attempt(number: int, *, pause_at: int | None = None) -> Outcome:
            made = {"model": self.model, **spec}
            job = Job(job_id(name), kind, JobState.RUNNING, made, attempt=number)
            workspace = Workspace(self.home / name, Claim(job, attempt=number, worker_id="test"))
            run = Run.open(workspace.directory)
            with stopping(run, at=pause_at):
                TrainingRun(run, settings, OneRank()).execute()
            outcome = workspace.outcome()
            assert outcome is not None
            return outcome

        begun = attempt(first, pause_at=pause_at)
        return begun if pause_at is None else attempt(first + 1)

    def ledger(self, name: str) -> list[dict[str, Any]]:
        """Rows of a finished job's ledger."""
        with open_artifact(self.store, job_id(name), "ledger.parquet") as file:
            return pq.read_table(io.BytesIO(file.read())).to_pylist()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """What a finished job logged, one entry a step."""
        with open_artifact(self.store, job_id(name), "metrics.jsonl") as file:
            return [json.loads(line) for line in file.read().splitlines()]

    def weights(self, model_id: str) -> dict[str, Tensor]:
        """Of a model in the store."""
        directory = ModelStore(self.store, self.home / "cache").fetch(model_id)
        return load_file(next(directory.glob("*.safetensors")))
