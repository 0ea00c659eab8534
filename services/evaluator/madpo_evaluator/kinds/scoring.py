"""Scoring jobs: a dataset is left once more, with a reward model's rewards."""

import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import validate
from madpo.jobs.scoring import ScoringSpec
from madpo.ports import ObjectStore
from madpo.scoring.ask import LONGER_READING
from madpo.scoring.connection import require_scorer
from madpo.storage import keys
from madpo.storage.growing import GrowingBundle
from madpo.storage.references import resolve_model_id
from madpo.types import DatasetKind, JobKind, JobResult, PreferencePair, ResponseList
from madpo.worker.phase import Phase
from madpo_evaluator.kinds.base import EvaluatorKind, JobInputs
from madpo_evaluator.row_rewards import Rewards, Row, RowRewards, row_rewards, with_rewards

logger = logging.getLogger(__name__)

_PATH = "spec.scoring"
_ROWS_AT_ONCE = 256
"""Asked for together, and kept together for the next attempt."""


class KeptRewards:
    """Rewards that a job has learned, stored call by call: another attempt asks for those behind them.

    Args:
        store: Where to.
        job_id: Whose they are.
        revision: Of the reward model. What was kept of another one is removed.
        scratch: Local directory for files on their way.
    """

    def __init__(self, store: ObjectStore, job_id: str, *, revision: str, scratch: Path) -> None:
        self._parts = GrowingBundle(store, keys.rewards(job_id), suffix="json")
        self._revision, self._path = revision, scratch / "rewards-part.json"
        self._found = self._read()
        if self._found is None:
            logger.warning("the reward model has changed: all rows are scored again")
            self._parts.remove()
            self._parts = GrowingBundle(store, keys.rewards(job_id), suffix="json")

    @property
    def calls(self) -> list[tuple[list[Rewards], int]]:
        """Rewards of earlier attempts, and how many rows were read in part, call by call."""
        return self._found or []

    def add(self, rewards: Sequence[Rewards], truncated: int) -> None:
        """Keep those of a call."""
        body = {"revision": self._revision, "rewards": list(rewards), "truncated": truncated}
        self._path.write_text(json.dumps(body))
        self._parts.add(self._path)

    def remove(self) -> None:
        """They are part of a dataset."""
        self._parts.remove()

    def _read(self) -> list[tuple[list[Rewards], int]] | None:
        found = []
        for file in self._parts.files:
            self._parts.fetch(file, self._path)
            body = json.loads(self._path.read_bytes())
            if body["revision"] != self._revision:
                return None
            found.append((body["rewards"], body["truncated"]))
        return found


class ScoringRun:
    """One scoring: leaves a dataset, and figures about its rewards."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run = inputs, inputs.run
        self._spec = validate(ScoringSpec, inputs.run.job.spec, path=_PATH)
        self._truncated = self._rows = self._all_alike = 0
        self._margins = array("d")

    def execute(self) -> JobResult:
        """Score and store; returns the figures and the dataset."""
        Phase(self._run, "loading")
        inputs = self._inputs
        require_scorer(inputs.settings)
        model_id = resolve_model_id(self._spec.reward_model, store=inputs.store)
        dataset = inputs.datasets.get(inputs.dataset_id(self._spec.dataset))
        if dataset.kind not in (DatasetKind.PREFERENCE, DatasetKind.LIST):
            raise InvalidArgumentError(f"{_PATH}.dataset: {dataset.dataset_id} holds neither pairs nor lists")
        with row_rewards(inputs.settings, model_id) as rewards:
            kept = KeptRewards(
                inputs.store, self._run.job.job_id, revision=rewards.revision, scratch=self._run.directory
            )
            phase = Phase(self._run, "scoring", dataset.rows, unit="rows")
            rows = cast(Iterator[Row], inputs.datasets.read(dataset.dataset_id))
            left, _ = inputs.datasets.write(
                self._scored(rows, rewards, kept, phase),
                kind=dataset.kind,
                display_name=self._run.job.display_name,
                scratch=self._run.directory / "dataset",
            )
        kept.remove()
        self._warn()
        return inputs.result(self._figures(rewards.revision), dataset_id=left.dataset_id)

    def _scored(self, rows: Iterator[Row], rewards: RowRewards, kept: KeptRewards, phase: Phase) -> Iterator[Row]:
        earlier = iter(kept.calls)
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            found, truncated = next(earlier, (None, 0))
            if found is None:
                found, truncated = ask(rewards, batch)
                kept.add(found, truncated)
            self._truncated += truncated
            for row, of_row in zip(batch, found, strict=True):
                self._rows += 1
                if isinstance(row, PreferencePair):
                    self._margins.append(of_row[0] - of_row[1])
                    yield with_rewards(row, of_row)
                elif len(set(of_row)) > 1:
                    self._margins.append(max(of_row) - min(of_row))
                    yield with_rewards(row, of_row)
                else:
                    self._all_alike += 1  # an order of nothing
            phase.advance(len(batch))

    def _warn(self) -> None:
        warnings = self._inputs.tolerance.warnings
        if self._truncated:
            warnings.append(
                f"the reward model read only a part of {self._truncated} of {self._rows} rows: {LONGER_READING}"
            )
        if self._all_alike:
            warnings.append(f"{self._all_alike} lists are left out: the reward model scores all their responses alike")

    def _figures(self, revision: str) -> dict[str, Any]:
        margins = np.array(self._margins)
        return {
            "rows": len(margins),
            "reward_margin": {"mean": float(margins.mean()), "std": float(margins.std())},
            "contradicted_ratio": float((margins < 0).mean()),
            "truncated": self._truncated,
            "reward_model_revision": revision,
        }


def ask(rewards: RowRewards, rows: Sequence[Row]) -> tuple[list[Rewards], int]:
    """Rewards of rows of one kind, and of how many rows the model read only a part."""
    before = rewards.truncated
    if isinstance(rows[0], ResponseList):
        found = rewards.of_lists(cast(Sequence[ResponseList], rows))
    else:
        found = rewards.of_pairs(cast(Any, rows))
    return found, rewards.truncated - before


KIND = EvaluatorKind(JobKind.SCORING, lambda inputs: ScoringRun(inputs).execute())
