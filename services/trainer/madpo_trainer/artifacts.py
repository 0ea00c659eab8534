"""What a training leaves beside its model: metrics and their curves, ledger, calibration."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from madpo.calibration.report import CalibrationReport
from madpo.errors import AlreadyExistsError
from madpo.ports import ObjectStore
from madpo.storage.artifacts import publish_artifacts
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run
from madpo_trainer.curves import write_curves
from madpo_trainer.ledger import Ledger
from madpo_trainer.margins.calibration import write_artifacts

CURVES = "training.png"


class RecordSoFar:
    """What can be read of a run that goes on: ledger, metrics up to a step, and the calibration it began with.

    Args:
        run: The attempt.
        store: Where to.
        ledger: Of the job.
    """

    def __init__(self, run: Run, store: ObjectStore, ledger: Ledger) -> None:
        self._run, self._store, self._ledger = run, store, ledger
        self._step, self._metrics, self._calibration = 0, list[dict[str, Any]](), dict[str, Any]()

    def take(self, step: int, *, metrics: Sequence[dict[str, Any]], calibration: Mapping[str, Any]) -> list[str]:
        """Take what there is at a step; keys of all parts of the ledger up to it."""
        self._ledger.cut(step)
        self._step, self._metrics, self._calibration = step, [*metrics], dict(calibration)
        return [*self._ledger.parts]

    def store(self) -> None:
        """Store what was taken last; another thread may, while the run goes on.

        What fails of metrics and calibration is only logged: they are stored once more at the end.
        """
        self._ledger.store()
        tolerance = Tolerance()
        tolerance.attempt(f"storing the metrics of step {self._step}", lambda: self._leave_metrics(tolerance), None)

    def _leave_metrics(self, tolerance: Tolerance) -> None:
        run, step = self._run, self._step
        directory = run.directory / f"artifacts-{step}"
        directory.mkdir(exist_ok=True)
        write_metrics(directory / "metrics.jsonl", self._metrics)
        if self._calibration:
            write_artifacts(CalibrationReport.model_validate(self._calibration), directory, tolerance)
        with contextlib.suppress(AlreadyExistsError):  # of the same step, before the run was started anew
            publish_artifacts(self._store, run.job.job_id, directory, attempt=run.attempt, early_step=step)
        shutil.rmtree(directory)


def leave_artifacts(
    run: Run,
    store: ObjectStore,
    tolerance: Tolerance,
    *,
    metrics: Sequence[dict[str, Any]],
    initial_eval: Mapping[str, float],
    calibration: Mapping[str, Any],
    ledger: Ledger,
) -> None:
    """Write and store the artifacts, each for itself: one that fails is missed, the others are there.

    Args:
        run: The attempt.
        store: Where to.
        tolerance: Gets the warnings.
        metrics: One entry a logged step.
        initial_eval: Figures on the held-out rows before the first.
        calibration: The report the job began with; empty where there was none.
        ledger: Of the job; may have no parts.
    """
    directory, attempt = run.directory / "artifacts", tolerance.attempt
    directory.mkdir(exist_ok=True)
    attempt("metrics.jsonl", lambda: write_metrics(directory / "metrics.jsonl", metrics), None)
    curves = directory / CURVES
    attempt(CURVES, lambda: write_curves(curves, metrics, initial_eval=initial_eval), None)
    if calibration:
        report = CalibrationReport.model_validate(calibration)
        attempt("calibration.json", lambda: write_artifacts(report, directory, tolerance), None)
    if ledger.parts:
        attempt("ledger.parquet", lambda: ledger.join(directory / "ledger.parquet"), None)
    job_id, number = run.job.job_id, run.attempt
    attempt("storing artifacts", lambda: publish_artifacts(store, job_id, directory, attempt=number), None)


def write_metrics(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
