"""Jobs, events and checkpoints of ours in OpenAI's shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

from madpo.jobs.base import ModelReference
from madpo.jobs.registry import KINDS, parse_spec
from madpo.jobs.training import OptimizerParameters
from madpo.types import Checkpoint, CheckpointPublished, Job, JobEvent, JobProgress, JobState, StateChange

FINE_TUNING = frozenset(name for name, kind in KINDS.items() if kind.is_training and kind.leaves_model == "causal_lm")
"""The jobs that OpenAI's clients see."""

_STATUSES = {
    JobState.WAITING: "queued",
    JobState.PENDING: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
_DEFAULT_RATE: float = OptimizerParameters().learning_rate


def job_shape(job: Job) -> dict[str, Any]:
    """`fine_tuning.job`."""
    spec: Any = parse_spec(job.kind, job.spec)
    method: Mapping[str, Any] | None = job.spec.get("method")
    hyperparameters: dict[str, Any] = {
        "n_epochs": spec.training.epochs,
        "batch_size": spec.training.global_batch_size,
        "learning_rate_multiplier": float(f"{spec.training.optimizer.learning_rate / _DEFAULT_RATE:.12g}"),
    }
    extension: dict[str, Any] = {"training": job.spec.get("training", {})}
    extension |= {key: job.spec[key] for key in ("method", "margin") if job.spec.get(key)}
    if method is not None and "beta" in method["params"]:
        hyperparameters["beta"] = method["params"]["beta"]
    kind = "supervised" if method is None else "dpo"
    result = job.result
    return {
        "id": job.job_id,
        "object": "fine_tuning.job",
        "created_at": int(job.create_time),
        "finished_at": None if job.finish_time is None else int(job.finish_time),
        "model": _named(spec.model),
        "fine_tuned_model": result.model_id if result is not None else None,
        "organization_id": "madpo",
        "status": _STATUSES[job.state],
        "training_file": str(spec.dataset),
        "validation_file": None if spec.eval_dataset is None else str(spec.eval_dataset),
        "result_files": [],
        "trained_tokens": None if result is None else result.summary.get("trained_tokens"),
        "hyperparameters": hyperparameters,
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "seed": spec.training.seed,
        "error": error_shape(job),
        "estimated_finish": None,
        "integrations": [],
        "metadata": dict(job.metadata) or None,
        "user_provided_suffix": job.display_name or None,
        "madpo": extension,
    }


def error_shape(job: Job) -> dict[str, Any]:
    """Why a job failed; of others an object without content, as OpenAI's clients expect."""
    if job.state is not JobState.FAILED:
        return {"code": "", "message": "", "param": None}
    return {"code": "job_failed", "message": job.reason, "param": None}


def event_shape(event: JobEvent) -> dict[str, Any] | None:
    """`fine_tuning.job.event`; None for what is no event there, which is a line of the log."""
    data: dict[str, Any] | None = None
    match event.event:
        case StateChange(state, attempt, reason):
            message = f"The job is {state.value.lower()}" + (f": {reason}" if reason else "")
            level = {JobState.FAILED: "error", JobState.CANCELLED: "warn"}.get(state, "info")
            data = {"state": state.value, "attempt": attempt}
        case CheckpointPublished(step):
            message, level, data = f"Checkpoint of step {step} stored", "info", {"step": step}
        case JobProgress() as progress:
            message, level = _progress(progress), "info"
            data = {"step": progress.step, "total_steps": progress.total_steps, **progress.metrics}
        case _:
            return None
    is_progress = isinstance(event.event, JobProgress)
    return {
        "id": f"ftevent-{event.cursor}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.create_time),
        "level": level,
        "message": message,
        "type": "metrics" if is_progress else "message",
        "data": data,
    }


def checkpoint_shape(checkpoint: Checkpoint, metrics: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """`fine_tuning.job.checkpoint`; its model is named as everywhere here, `JOB@STEP`."""
    return {
        "id": f"ftckpt-{checkpoint.job_id.removeprefix('job-')}-{checkpoint.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.create_time),
        "fine_tuned_model_checkpoint": f"{checkpoint.job_id}@{checkpoint.step}",
        "fine_tuning_job_id": checkpoint.job_id,
        "step_number": checkpoint.step,
        "metrics": {"step": checkpoint.step, **_as_openai(metrics.get(checkpoint.step, {}))},
    }


def metrics_by_step(events: Iterable[JobEvent]) -> dict[int, Mapping[str, float]]:
    """What was reported of each step."""
    return {
        event.event.step: event.event.metrics
        for event in events
        if isinstance(event.event, JobProgress) and event.event.metrics
    }


def _named(model: ModelReference) -> str:
    """As it can be given again."""
    name = model.model_id or model.job_id or ""
    return name if model.step is None else f"{name}@{model.step}"


def _progress(progress: JobProgress) -> str:
    if not progress.total_steps or not progress.metrics:
        return progress.phase.capitalize() or "Working"
    loss = progress.metrics.get("loss")
    return f"Step {progress.step}/{progress.total_steps}" + (f": training loss={loss:.4f}" if loss is not None else "")


def _as_openai(metrics: Mapping[str, float]) -> dict[str, float]:
    names = {"loss": "train_loss", "eval/loss": "valid_loss"}
    return {new: metrics[old] for old, new in names.items() if old in metrics}
