"""`madpo job list`: which jobs, and what is said of each."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from madpo.errors import NotFoundError
from madpo.spelling import nearest, number_of
from madpo.types import Job, JobState
from madpo_client.cli.output import Column, time_text
from madpo_client.progress import describe_phase, describe_span

if TYPE_CHECKING:
    from madpo_client.client import Client

_STYLES = {
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
}


def require_method(name: str) -> None:
    """Raises BadParameter for a method that there is not, whose jobs nobody can have."""
    from madpo.losses.registry import METHODS

    if name not in METHODS:
        meant = " or ".join(nearest(name, METHODS))
        raise typer.BadParameter(f"there is no method {name!r}; did you mean {meant}?", param_hint="--method")


def job_columns(client: "Client", jobs: Sequence[Job]) -> list[Column]:
    """What a table says of these jobs."""
    names = _names(client, jobs)
    return [
        Column("job", lambda job: job.job_id),
        Column("name", lambda job: job.display_name, rank=1, shortest=12),
        Column("kind", lambda job: job.kind.value.removesuffix("_training"), rank=3),
        Column("method", method_of, rank=5),
        Column("model", lambda job: _model_name(job, names), rank=6, shortest=12),
        Column("state", _state, rank=2),
        Column("progress", describe_progress, rank=7),
        Column("took", lambda job: _took(job), rank=8, is_right=True),
        Column("created", lambda job: time_text(job.create_time), rank=9),
        Column("reason", lambda job: _reason(job, names), rank=4, shortest=16),
    ]


def method_of(job: Job) -> str | None:
    """The method of a job that has one."""
    method = job.spec.get("method")
    return method.get("name") if isinstance(method, Mapping) else None


def describe_progress(job: Job) -> str:
    """`training 120/500, 3:10 left`; of what is over, its steps."""
    progress = job.progress
    if job.state is JobState.SUCCEEDED:
        steps = job.result.summary.get("steps") if job.result else None
        if not isinstance(steps, (int, float)):
            return ""
        # Less than all of them where it stopped early.
        total = progress.total_steps if progress is not None else 0
        return f"{steps:,.0f} of {total:,} steps" if total > steps else number_of(round(steps), "step")
    if progress is None:
        return ""
    if job.state is not JobState.RUNNING:
        return f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
    left = f", {describe_span(progress.remaining_s)} left" if progress.remaining_s is not None else ""
    return f"{describe_phase(progress)}{left}"


def _state(job: Job) -> Text:
    """Yellow where a job has done what it is for, and something beside went wrong."""
    has_warnings = job.state is JobState.SUCCEEDED and job.result is not None and bool(job.result.warnings)
    return Text(job.state.value.lower(), style="yellow" if has_warnings else _STYLES.get(job.state, ""))


def _took(job: Job) -> str:
    if job.start_time is None:
        return ""
    return describe_span(max(0.0, (job.finish_time or time.time()) - job.start_time))


def _reason(job: Job, names: Mapping[str, str]) -> str:
    """Why it is as it is, in a line: `madpo job show` has all of it."""
    if job.state is JobState.WAITING:
        return f"waits for {', '.join(names.get(each) or each for each in job.depends_on)}"
    if job.state is JobState.SUCCEEDED and job.result is not None and job.result.warnings:
        first, *more = job.result.warnings
        others = f" (and {len(more)} more)" if more else ""
        return f"warning: {first.strip().partition(chr(10))[0]}{others}"
    return job.reason.strip().partition("\n")[0]


def _model_name(job: Job, names: Mapping[str, str]) -> str:
    model = job.spec.get("model") or job.spec.get("reward_model")
    if not isinstance(model, Mapping):
        return ""
    found = model.get("model_id") or model.get("job_id") or ""
    step = f"@{model['step']}" if model.get("step") is not None else ""
    return f"{names.get(found) or found}{step}"


def _names(client: "Client", jobs: Sequence[Job]) -> dict[str, str]:
    """The names of what the jobs refer to, by id."""
    names = {job.job_id: job.display_name for job in jobs}
    if any(model_id not in names for job in jobs for model_id in _model_ids(job.spec)):
        known = client.models.list(on_unreadable=lambda finding: None)  # `madpo model list` names those
        names |= {model.model_id: model.display_name for model in known}
    for job_id in {job_id for job in jobs for job_id in _job_ids(job)} - names.keys():
        # One that the list leaves out, by its filters or its length; it may be gone.
        with suppress(NotFoundError):
            names[job_id] = client.jobs.get(job_id).job.display_name
    return names


def _job_ids(job: Job) -> Iterator[str]:
    """Ids of other jobs that the list names."""
    for part in ("model", "reward_model"):
        reference = job.spec.get(part)
        if isinstance(reference, Mapping) and reference.get("job_id"):
            yield str(reference["job_id"])
    if job.state is JobState.WAITING:
        yield from job.depends_on


def _model_ids(spec: Mapping[str, Any]) -> Iterator[str]:
    for part in ("model", "reward_model"):
        reference = spec.get(part)
        if isinstance(reference, Mapping) and reference.get("model_id"):
            yield str(reference["model_id"])
