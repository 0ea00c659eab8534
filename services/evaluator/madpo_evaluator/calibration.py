"""Calibration jobs: how far a reward model's margins can be read as log-odds, and what a method makes of them."""

import asyncio
import logging

from madpo.calibration.measure import measure
from madpo.calibration.plot import write_plot
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs import CalibrationSpec, validate
from madpo.losses.registry import get_method, parse_params
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.datasets import DatasetStore
from madpo.storage.open import open_store
from madpo.storage.references import resolve_model_id
from madpo.types import JobResult, PreferencePair
from madpo.worker.phase import Phase
from madpo.worker.workspace import Run
from madpo_evaluator.scoring import score_margins
from madpo_evaluator.settings import EvaluatorSettings

logger = logging.getLogger(__name__)

_PATH = "spec.calibration"


class CalibrationRun:
    """One calibration: scores pairs, measures, and leaves `calibration.json` and `calibration.png`."""

    def __init__(self, run: Run, settings: EvaluatorSettings) -> None:
        self._run, self._settings = run, settings
        self._spec = validate(CalibrationSpec, run.job.spec, path=_PATH)
        self._store = open_store(settings)
        self._datasets = DatasetStore(self._store)

    def execute(self) -> JobResult:
        """Measure and publish; returns the figures."""
        spec = self._spec
        Phase(self._run, "loading")
        config = parse_params(spec.method.name, spec.method.params, path=f"{_PATH}.method")
        held_out = self._read(spec.dataset_id)
        training = None if spec.training_dataset_id is None else self._read(spec.training_dataset_id)
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
        directory = self._run.directory / "artifacts"
        directory.mkdir(exist_ok=True)
        (directory / "calibration.json").write_text(report.to_json())
        write_plot(report, directory / "calibration.png")
        publish_artifacts(self._store, self._run.job.job_id, directory, attempt=self._run.attempt)
        return JobResult(summary=report.summary())

    def _read(self, dataset_id: str) -> list[PreferencePair]:
        pairs = [row for row in self._datasets.read(dataset_id) if isinstance(row, PreferencePair)]
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
        target, token = self._settings.reward_target, self._settings.reward_token
        if target is None:
            raise FailedPreconditionError(
                "the job names a reward model, but this evaluator knows no reward service "
                "(set MADPO_EVALUATOR_REWARD_TARGET)"
            )
        model_id = resolve_model_id(reference, store=self._store)
        unique = {pair.pair_id: pair for pair in pairs}
        phase = Phase(self._run, "scoring", len(unique))

        async def ask() -> list[float]:
            secret = token.get_secret_value() if token else None
            async with RewardClient(target, token=secret, tls=client_tls(self._settings)) as client:
                return await score_margins(client, model_id, list(unique.values()), advance=phase.advance)

        scored = dict(zip(unique, asyncio.run(ask()), strict=True))
        return [scored[pair.pair_id] for pair in pairs]
