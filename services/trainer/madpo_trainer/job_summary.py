"""What the result of a training says of it, beside how it was run and what it left."""

from collections.abc import Mapping, Sequence
from typing import Any

from madpo.calibration.report import CalibrationReport
from madpo.worker.tolerance import Tolerance
from madpo_trainer.kinds.base import TrainingInputs
from madpo_trainer.margins.source import margin_warnings, with_waits
from madpo_trainer.objectives.base import Objective


def summarise_job(
    objective: Objective,
    inputs: TrainingInputs,
    held_out: Mapping[str, float],
    *,
    metrics: Sequence[Mapping[str, Any]],
    tolerance: Tolerance,
) -> dict[str, Any]:
    """Figures of a training that is over.

    Args:
        objective: What was optimised.
        inputs: What it was built from.
        held_out: Figures on the held-out rows, of the model as it is left.
        metrics: Of all logged steps.
        tolerance: Told what cannot be summarised; the rest is.
    """
    state = inputs.state
    nothing: dict[str, Any] = {}
    summary: dict[str, Any] = {
        "steps": state.step,
        "final": dict(metrics[-1]) if metrics else {},
        "eval_before": state.initial_eval,
        "eval": dict(held_out),
        "train_seconds": state.counters.get("step_s", 0.0),
        "rows": {
            name: inputs.rows.counts[dataset_id].summary()
            for name, dataset_id in (("training", inputs.dataset_id), ("held_out", inputs.eval_dataset_id))
            if dataset_id is not None
        },
        **tolerance.attempt("the summary of the method", objective.summary, nothing),
    }
    if state.calibration:
        report = CalibrationReport.model_validate(state.calibration)
        summary["calibration"] = tolerance.attempt("the summary of the calibration", report.summary, nothing)
    if "margins" in summary:
        summary["margins"] = with_waits(summary["margins"], state.counters)
        tolerance.warnings += margin_warnings(summary["margins"])
    return summary
