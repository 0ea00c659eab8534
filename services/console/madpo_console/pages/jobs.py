"""Pages of jobs: all of them, one, and several over each other."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from madpo.errors import InvalidArgumentError, MadpoError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference, references
from madpo.jobs.registry import KINDS, parse_spec
from madpo.types import CheckpointPublished, Job, JobKind, JobState, StateChange
from madpo_client import JobHandle
from madpo_console.callers import Asker, Asking
from madpo_console.pages.rendering import render

router = APIRouter()

_JOBS_A_PAGE = 50
_LOG_LINES = 200
_MOST_COMPARED = 8


@router.get("/jobs")
def show_jobs(
    request: Request,
    asking: Asking,
    state: str = "",
    kind: str = "",
    name: Annotated[str, Query(max_length=200)] = "",
    shown: Annotated[int, Query(ge=1, le=1000)] = _JOBS_A_PAGE,
) -> Response:
    """Jobs, the newest first. htmx asks for the table alone."""
    found = asking.client.jobs.list(
        limit=shown + 1,
        states=[JobState(state)] if state in JobState.__members__ else [],
        kinds=[JobKind(kind)] if kind in {each.value for each in JobKind} else [],
        name=name or None,
    )
    fields: dict[str, Any] = {
        "jobs": [handle.job for handle in found[:shown]],
        "has_more": len(found) > shown,
        "asked": {"state": state, "kind": kind, "name": name, "shown": shown},
        "a_page": _JOBS_A_PAGE,
    }
    is_piece = request.headers.get("hx-request") == "true"
    return render(request, "jobs_table.html" if is_piece else "jobs.html", asking=asking, **fields)


@router.get("/jobs/{job_id}")
def show_job(request: Request, asking: Asking, job_id: str) -> Response:
    """One job."""
    handle = asking.client.jobs.get(job_id)
    return render(request, "job.html", asking=asking, **_of_job(asking, handle))


@router.get("/jobs/{job_id}/state")
def show_state(request: Request, asking: Asking, job_id: str) -> Response:
    """The head of a job's page, which changes while it runs."""
    return render(request, "job_state.html", asking=asking, job=asking.client.jobs.get(job_id).job)


@router.get("/jobs/{job_id}/log")
def show_log(request: Request, asking: Asking, job_id: str) -> Response:
    """The end of its log."""
    try:
        lines = asking.client.jobs.get(job_id).logs().splitlines()
        text = "\n".join(lines[-_LOG_LINES:])
    except NotFoundError as error:
        text = str(error)
    return render(request, "log.html", asking=asking, text=text)


@router.post("/jobs/{job_id}/{action}")
def change_job(request: Request, asking: Asking, job_id: str, action: str) -> Response:
    """Cancel, resume or delete a job, and show what became of it."""
    handle = asking.client.jobs.get(job_id)
    match action:
        case "cancel":
            handle.cancel()
        case "resume":
            handle.resume()
        case "delete":
            handle.delete()
            return Response(status_code=204, headers={"HX-Redirect": "/jobs"})
        case _:
            raise NotFoundError(f"there is nothing at {request.url.path}")
    return render(request, "job_state.html", asking=asking, job=handle.job)


@router.get("/compare")
def compare_jobs(request: Request, asking: Asking, job: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006
    """Curves of several jobs over each other, and in what their specs differ."""
    if len(job) > _MOST_COMPARED:
        raise InvalidArgumentError.in_field("job", f"at most {_MOST_COMPARED} jobs can be compared, got {len(job)}")
    jobs = [asking.client.jobs.get(each).job for each in job]
    flat = [flattened(each.spec) for each in jobs]
    names = dict.fromkeys(name for spec in flat for name in spec)
    differing = [
        (name, [spec.get(name, "") for spec in flat])
        for name in names
        if len({repr(spec.get(name)) for spec in flat}) > 1
    ]
    return render(request, "compare.html", asking=asking, jobs=jobs, differing=differing)


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """A spec as one level of fields: `training.optimizer.learning_rate`."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, each in value.items()
        for name, leaf in flattened(each, f"{path}.{key}" if path else str(key)).items()
    }


def _of_job(asking: Asker, handle: JobHandle) -> dict[str, Any]:
    job = handle.job
    artifacts = checkpoints = events = []  # type: list[Any]
    with suppress(NotFoundError):
        artifacts = handle.artifacts()
    if KINDS[job.kind].is_training:
        checkpoints = asking.client.models.checkpoints(handle)
    with suppress(MadpoError):
        events = [event for event in handle.events() if isinstance(event.event, StateChange | CheckpointPublished)]
    return {
        "job": job,
        "is_training": KINDS[job.kind].is_training,
        "spec": flattened(job.spec),
        "summary": flattened(dict(job.result.summary)) if job.result is not None else {},
        "artifacts": artifacts,
        "checkpoints": checkpoints,
        "events": events,
        "uses": _uses(job),
    }


def _uses(job: Job) -> list[tuple[str, str, str]]:
    """What a job refers to: its part in it, its id, and where that is shown."""
    found = []
    for reference in references(parse_spec(job.kind, job.spec)):
        target = reference.target
        used = target if isinstance(target, str) else target.job_id
        if used is not None:
            found.append((reference.path, used, f"/jobs/{used}"))
        elif isinstance(target, DatasetReference):
            found.append((reference.path, str(target), f"/datasets/{target}"))
        elif isinstance(target, ModelReference) and target.model_id is not None:
            found.append((reference.path, target.model_id, f"/models#{target.model_id}"))
    return found
