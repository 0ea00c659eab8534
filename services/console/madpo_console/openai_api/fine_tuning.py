"""`/v1/fine_tuning/jobs`: supervised and preference trainings."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from madpo.errors import NotFoundError
from madpo_client import JobHandle
from madpo_console.callers import Asker, Asking
from madpo_console.openai_api.listing import After, Limit, page
from madpo_console.openai_api.requests import CreateFineTuningJob
from madpo_console.openai_api.shapes import FINE_TUNING, checkpoint_shape, event_shape, job_shape, metrics_by_step

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["OpenAI: fine-tuning"])


@router.post("")
def create_job(asking: Asking, asked: CreateFineTuningJob) -> dict[str, Any]:
    """Start a training; what it refers to is looked at first."""
    kind, spec = asked.kind_and_spec()
    handle = asking.client.jobs.create(kind, spec, name=asked.suffix or "", metadata=asked.metadata)
    return job_shape(handle.job)


@router.get("")
def list_jobs(request: Request, asking: Asking, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """Trainings, the newest first; with `metadata[name]=value` those that have it."""
    asked = {name[9:-1]: value for name, value in request.query_params.items() if name.startswith("metadata[")}
    found = (handle.job for handle in asking.client.jobs.each(kinds=FINE_TUNING))
    jobs = (job for job in found if asked.items() <= dict(job.metadata).items())
    return page(jobs, job_shape, id_of=lambda job: job.job_id, after=after, limit=limit)


@router.get("/{job_id}")
def retrieve_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """One training."""
    return job_shape(_training(asking, job_id).job)


@router.post("/{job_id}/cancel")
def cancel_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """End a training; its checkpoints stay, and it can be resumed."""
    return job_shape(_training(asking, job_id).cancel())


@router.post("/{job_id}/pause")
def pause_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """The same as to cancel: a cancelled training goes on from its last step when it is resumed."""
    return job_shape(_training(asking, job_id).cancel())


@router.post("/{job_id}/resume")
def resume_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """Go on with a training that was cancelled or failed."""
    return job_shape(_training(asking, job_id).resume())


@router.get("/{job_id}/events")
def list_events(asking: Asking, job_id: str, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """What happened to a training, the newest first; its log is elsewhere."""
    events = reversed(_training(asking, job_id).events())
    shaped = (shape for event in events if (shape := event_shape(event)) is not None)
    return page(shaped, lambda shape: shape, id_of=lambda shape: str(shape["id"]), after=after, limit=limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    asking: Asking, job_id: str, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 10
) -> dict[str, Any]:
    """Checkpoints, the newest first, with what was measured at their steps."""
    handle = _training(asking, job_id)
    metrics = metrics_by_step(handle.events())
    shaped = (checkpoint_shape(found, metrics) for found in asking.client.models.checkpoints(handle))
    return page(shaped, lambda shape: shape, id_of=lambda shape: str(shape["id"]), after=after, limit=limit)


def _training(asking: Asker, job_id: str) -> JobHandle:
    handle = asking.client.jobs.get(job_id)
    if handle.job.kind not in FINE_TUNING:
        raise NotFoundError(f"{handle.id} is no fine-tuning job but a {handle.job.kind.value}")
    return handle
