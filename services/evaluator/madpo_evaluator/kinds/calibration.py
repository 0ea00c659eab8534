"""Calibration jobs: how far a reward model's margins can be read as log-odds, and what a method makes of them."""

import asyncio
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, compress

import numpy as np

from madpo.calibration.figures import Vector
from madpo.calibration.measure import measure
from madpo.calibration.subsets import measure_subsets
from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, ModelReference, validate
from madpo.jobs.calibration import CalibrationSpec
from madpo.losses.registry import get_method, parse_params
from madpo.pages.calibration_plot import write_plot
from madpo.scoring.ask import LONGER_READING, Scores, score_margins
from madpo.scoring.connection import connect_scorer, require_scorer
from madpo.storage.references import resolve_model_id
from madpo.types import Dataset, JobKind, JobResult, PreferencePair
from madpo.worker.phase import Phase, counted
from madpo_evaluator.kinds.base import EvaluatorKind, JobInputs

logger = logging.getLogger(__name__)

_PATH = "spec.calibration"


class CalibrationRun:
    """One calibration: scores pairs, measures, and leaves `calibration.json` and `calibration.png`."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run = inputs, inputs.run
        self._spec = validate(CalibrationSpec, inputs.run.job.spec, path=_PATH)
        self._truncated = 0

    def execute(self) -> JobResult:
        """Measure and publish; returns the figures."""
        spec = self._spec
        Phase(self._run, "loading")
        config = parse_params(spec.method.name, spec.method.params, path=f"{_PATH}.method")
        datasets = [self._dataset(each) for each in (spec.eval_dataset, spec.dataset) if each is not None]
        held_out, *training = self._margins(datasets)
        report = measure(
            get_method(spec.method.name),
            config,
            temperature=spec.temperature,
            held_out=held_out,
            training=training[0] if training else None,
        )
        report = report.model_copy(update={"subsets": measure_subsets(held_out, self._sources(datasets[0]))})
        Phase(self._run, "reporting")
        for warning in report.warnings:
            logger.warning(warning)
        directory = self._inputs.artifacts
        (directory / "calibration.json").write_text(report.to_json())
        plot = directory / "calibration.png"
        self._inputs.tolerance.attempt("the plot", lambda: write_plot(report, plot), None)
        self._inputs.publish()
        return self._inputs.result(report.summary() | ({"truncated": self._truncated} if self._truncated else {}))

    def _dataset(self, reference: DatasetReference) -> Dataset:
        return self._inputs.preference_dataset(reference, field=_PATH)

    def _sources(self, dataset: Dataset) -> list[str | None]:
        """Which part of a benchmark each pair is of; equal names are one text in memory."""
        if "source" not in dataset.columns:
            return []
        phase = Phase(self._run, "reading parts", dataset.rows, unit="pairs")
        return [pair.source and sys.intern(pair.source) for pair in counted(self._inputs.pairs(dataset), phase)]

    def _pairs(self, datasets: Sequence[Dataset]) -> Iterator[PreferencePair]:
        return chain.from_iterable(self._inputs.pairs(dataset) for dataset in datasets)

    def _margins(self, datasets: Sequence[Dataset]) -> list[Vector]:
        """Of the pairs of each dataset, in order."""
        reference = self._spec.reward_model
        margins = self._given(datasets) if reference is None else self._scored(datasets, reference)
        return np.split(margins, np.cumsum([dataset.rows for dataset in datasets])[:-1])

    def _given(self, datasets: Sequence[Dataset]) -> Vector:
        """Those that the rows have."""
        phase = Phase(self._run, "reading margins", sum(dataset.rows for dataset in datasets), unit="pairs")
        given = (pair.reward_margin for pair in counted(self._pairs(datasets), phase))
        margins = np.fromiter((math.nan if margin is None else margin for margin in given), np.float64)
        if missing := int(np.isnan(margins).sum()):
            raise InvalidArgumentError(
                f"{_PATH}: {missing} rows have no margin (add a `margin` column, or give reward_model)"
            )
        return margins

    def _scored(self, datasets: Sequence[Dataset], reference: ModelReference) -> Vector:
        """The reward model's; a pair that comes twice is scored once.

        The pairs pass twice, first to see which are the same: what stays in memory is 16 bytes of each, not its text.
        """
        require_scorer(self._inputs.settings)
        model_id = resolve_model_id(reference, store=self._inputs.store)
        phase = Phase(self._run, "reading pairs", sum(dataset.rows for dataset in datasets), unit="pairs")
        ids = bytearray()
        for pair in counted(self._pairs(datasets), phase):
            ids += bytes.fromhex(pair.pair_id)
        digests = np.frombuffer(ids, np.uint64).reshape(-1, 2)
        _, firsts, same = np.unique(digests, axis=0, return_index=True, return_inverse=True)
        is_first = np.zeros(len(digests), dtype=bool)
        is_first[firsts] = True
        phase = Phase(self._run, "scoring", len(firsts), unit="pairs")

        async def ask() -> Scores:
            wanted = compress(self._pairs(datasets), is_first)
            async with connect_scorer(self._inputs.settings) as client:
                return await score_margins(client, model_id, wanted, advance=phase.advance)

        scores = asyncio.run(ask())
        self._truncated = scores.truncated
        if scores.truncated:
            self._inputs.tolerance.warnings.append(
                f"the reward model read only a part of {scores.truncated} of {len(firsts)} pairs: {LONGER_READING}"
            )
        margins = np.empty(len(digests))
        margins[is_first] = scores.values
        return margins[firsts[same.ravel()]]


KIND = EvaluatorKind(JobKind.CALIBRATION, lambda inputs: CalibrationRun(inputs).execute())
