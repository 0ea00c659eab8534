"""Calibration jobs: how far a reward model's margins can be read as log-odds, and what a method makes of them."""

import asyncio
import logging

from madpo.calibration.measure import measure
from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, validate
from madpo.jobs.calibration import CalibrationSpec
from madpo.losses.registry import get_method, parse_params
from madpo.pages.calibration_plot import write_plot
from madpo.scoring.ask import score_margins
from madpo.scoring.connection import connect_scorer, require_scorer
from madpo.storage.references import resolve_model_id
from madpo.types import JobKind, JobResult, PreferencePair
from madpo.worker.phase import Phase
from madpo_evaluator.kinds.base import EvaluatorKind, JobInputs

logger = logging.getLogger(__name__)

_PATH = "spec.calibration"


class CalibrationRun:
    """One calibration: scores pairs, measures, and leaves `calibration.json` and `calibration.png`."""

    def __init__(self, inputs: JobInputs) -> None:
        self._inputs, self._run = inputs, inputs.run
        self._spec = validate(CalibrationSpec, inputs.run.job.spec, path=_PATH)

    def execute(self) -> JobResult:
        """Measure and publish; returns the figures."""
        spec = self._spec
        Phase(self._run, "loading")
        config = parse_params(spec.method.name, spec.method.params, path=f"{_PATH}.method")
        held_out = self._read(spec.eval_dataset)
        training = None if spec.dataset is None else self._read(spec.dataset)
        margins = self._margins([*held_out, *(training or [])])
        report = measure(
            get_method(spec.method.name),
            config,
            temperature=spec.temperature,
            held_out=margins[: len(held_out)],
            training=None if training is None else margins[len(held_out) :],
        )
        Phase(self._run, "reporting")
        for warning in report.warnings:
            logger.warning(warning)
        directory = self._inputs.artifacts
        (directory / "calibration.json").write_text(report.to_json())
        plot = directory / "calibration.png"
        self._inputs.tolerance.attempt("the plot", lambda: write_plot(report, plot), None)
        self._inputs.publish()
        return self._inputs.result(report.summary())

    def _read(self, reference: DatasetReference) -> list[PreferencePair]:
        dataset_id = self._inputs.dataset_id(reference)
        pairs = [row for row in self._inputs.datasets.read(dataset_id) if isinstance(row, PreferencePair)]
        if not pairs:
            raise InvalidArgumentError(f"{_PATH}: {dataset_id} holds no preference pairs")
        return pairs

    def _margins(self, pairs: list[PreferencePair]) -> list[float]:
        """In order; a pair that comes twice is scored once."""
        reference = self._spec.reward_model
        if reference is None:
            margins = [pair.reward_margin for pair in pairs if pair.reward_margin is not None]
            if len(margins) < len(pairs):
                raise InvalidArgumentError(
                    f"{_PATH}: {len(pairs) - len(margins)} rows have no margin "
                    "(add a `margin` column, or give reward_model)"
                )
            return margins
        require_scorer(self._inputs.settings)
        model_id = resolve_model_id(reference, store=self._inputs.store)
        unique = {pair.pair_id: pair for pair in pairs}
        phase = Phase(self._run, "scoring", len(unique), unit="pairs")

        async def ask() -> list[float]:
            async with connect_scorer(self._inputs.settings) as client:
                return await score_margins(client, model_id, list(unique.values()), advance=phase.advance)

        scored = dict(zip(unique, asyncio.run(ask()), strict=True))
        return [scored[pair.pair_id] for pair in pairs]


KIND = EvaluatorKind(JobKind.CALIBRATION, lambda inputs: CalibrationRun(inputs).execute())
