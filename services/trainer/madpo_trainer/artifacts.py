"""What a training leaves beside its model: metrics and their curves, ledger, calibration."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from madpo.calibration.report import CalibrationReport
from madpo.errors import AlreadyExistsError
from madpo.ports import ObjectStore
from madpo.storage.artifacts import publish_artifacts
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run
from madpo_trainer.curves import write_curves
from madpo_trainer.ledger import Ledger
from madpo_trainer.loop import write_metrics
from madpo_trainer.margins.calibration import write_artifacts

CURVES = "training.png"


def leave_metrics_so_far(
    run: Run,
    store: ObjectStore,
    *,
    step: int,
    metrics: Sequence[dict[str, Any]],
    calibration: Mapping[str, Any],
) -> None:
    """Store what can be read of a run that goes on: the metrics up to a step, and the calibration it began with.

    What fails of it is only logged: all of it is stored once more at the end.
    """
    tolerance = Tolerance()

    def write() -> None:
        directory = run.directory / f"artifacts-{step}"
        directory.mkdir(exist_ok=True)
        write_metrics(directory / "metrics.jsonl", metrics)
        if calibration:
            write_artifacts(CalibrationReport.model_validate(calibration), directory, tolerance)
        with contextlib.suppress(AlreadyExistsError):  # of the same step, before the run was started anew
            publish_artifacts(store, run.job.job_id, directory, attempt=run.attempt, early_step=step)
        shutil.rmtree(directory)

    tolerance.attempt(f"storing the metrics of step {step}", write, None)


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
