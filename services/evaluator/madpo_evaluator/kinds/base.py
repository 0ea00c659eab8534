"""What a kind of job is to the evaluator, and what its run works with."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference
from madpo.ports import ObjectStore
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.references import resolve_dataset_id
from madpo.types import Dataset, DatasetKind, JobKind, JobResult, PreferencePair
from madpo.worker.phase import Phase, transfers
from madpo.worker.store import open_run_store
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run
from madpo_evaluator.settings import EvaluatorSettings

logger = logging.getLogger(__name__)

NAMED_ROWS = 20


@dataclass(frozen=True, slots=True)
class JobInputs:
    """What one attempt works with."""

    run: Run
    settings: EvaluatorSettings
    store: ObjectStore
    datasets: DatasetStore
    models: ModelStore
    tolerance: Tolerance
    """Of what is not worth the rest of the job: a plot, one of several metrics."""

    @classmethod
    def open(cls, run: Run, settings: EvaluatorSettings) -> Self:
        """Everything reached by the settings."""
        store = open_run_store(settings, run)
        models = ModelStore(store, settings.copies, transfer=transfers(partial(Phase, run)))
        return cls(run, settings, store, DatasetStore(store), models, Tolerance())

    def dataset_id(self, reference: DatasetReference) -> str:
        """The stored dataset that a reference names."""
        return resolve_dataset_id(reference, store=self.store)

    def preference_dataset(self, reference: DatasetReference, *, field: str) -> Dataset:
        """The stored dataset of pairs that a field names. Raises InvalidArgumentError where it holds others."""
        dataset = self.datasets.get(self.dataset_id(reference))
        if dataset.kind is not DatasetKind.PREFERENCE:
            raise InvalidArgumentError(f"{field}: {dataset.dataset_id} holds no preference pairs")
        return dataset

    def pairs(self, dataset: Dataset) -> Iterator[PreferencePair]:
        """The pairs of a dataset, read as they are asked for: memory holds a thousand."""
        return cast(Iterator[PreferencePair], self.datasets.read(dataset.dataset_id))

    def warn_of_rows(self, text: str, rows: Sequence[int]) -> None:
        """Say in the log and the job's progress what is the matter with some rows, and name the first of them."""
        named = ", ".join(map(str, rows[:NAMED_ROWS]))
        warning = f"warning: {text}: row{'s' * (len(rows) > 1)} {named}"
        logger.warning(warning)
        Phase(self.run, warning)

    @property
    def artifacts(self) -> Path:
        """Directory of what the job leaves for people; `publish` stores it."""
        directory = self.run.directory / "artifacts"
        directory.mkdir(exist_ok=True)
        return directory

    def result(self, summary: Mapping[str, Any], *, dataset_id: str | None = None) -> JobResult:
        """What the job leaves beside its artifacts."""
        figures = self.tolerance.finite(summary)
        return JobResult(summary=figures, dataset_id=dataset_id, warnings=tuple(self.tolerance.warnings))

    def publish(self) -> None:
        """Store the artifacts."""
        publish_artifacts(self.store, self.run.job.job_id, self.artifacts, attempt=self.run.attempt)


@dataclass(frozen=True, slots=True)
class EvaluatorKind:
    """A kind of job; the registry finds it in its module."""

    name: JobKind
    execute: Callable[[JobInputs], JobResult]
    """Does the job. Raises Interrupted when the run is asked to stop."""
