"""What a training leaves beside its model: metrics, ledger, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from madpo.calibration.report import CalibrationReport
from madpo.ports import ObjectStore
from madpo.storage.artifacts import publish_artifacts
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run
from madpo_trainer.ledger import Ledger
from madpo_trainer.loop import write_metrics
from madpo_trainer.margins.calibration import write_artifacts


def leave_artifacts(
    run: Run,
    store: ObjectStore,
    tolerance: Tolerance,
    *,
    metrics: Sequence[dict[str, Any]],
    calibration: Mapping[str, Any],
    ledger: Ledger,
) -> None:
    """Write and store the artifacts, each for itself: one that fails is missed, the others are there.

    Args:
        run: The attempt.
        store: Where to.
        tolerance: Gets the warnings.
        metrics: One entry a logged step.
        calibration: The report the job began with; empty where there was none.
        ledger: Of the job; may have no parts.
    """
    directory, attempt = run.directory / "artifacts", tolerance.attempt
    directory.mkdir(exist_ok=True)
    attempt("metrics.jsonl", lambda: write_metrics(directory / "metrics.jsonl", metrics), None)
    if calibration:
        report = CalibrationReport.model_validate(calibration)
        attempt("calibration.json", lambda: write_artifacts(report, directory, tolerance), None)
    if ledger.parts:
        attempt("ledger.parquet", lambda: ledger.join(directory / "ledger.parquet"), None)
    job_id, number = run.job.job_id, run.attempt
    attempt("storing artifacts", lambda: publish_artifacts(store, job_id, directory, attempt=number), None)
