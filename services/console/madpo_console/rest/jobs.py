"""`/api/jobs`: jobs of all kinds."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic_core import to_json

from madpo.jobs.base import Spec
from madpo.jobs.registry import KINDS
from madpo.types import JobEvent, JobKind, JobState
from madpo_console.callers import RECHECK_S, Asking, Clients
from madpo_console.curves import curves
from madpo_console.rest.shapes import event_json, job_json

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

States = Annotated[list[JobState], Query()]
Kinds = Annotated[list[JobKind], Query()]


@router.get("")
def list_jobs(
    asking: Asking,
    states: States = [],  # noqa: B006  # FastAPI copies it
    kinds: Kinds = [],  # noqa: B006
    method: str | None = None,
    name: str | None = None,
    since: float | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[dict[str, Any]]:
    """Jobs, the newest first."""
    found = asking.client.jobs.list(limit=limit, states=states, kinds=kinds, method=method, name=name, since=since)
    return [job_json(handle.job) for handle in found]


@router.get("/{job_id}")
def get_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """One job, by its id, its beginning, a name or `@last`."""
    return job_json(asking.client.jobs.get(job_id).job)


@router.post("/{job_id}/cancel")
def cancel_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """Cancel a job; what it has reached stays."""
    return job_json(asking.client.jobs.get(job_id).cancel())


@router.post("/{job_id}/resume")
def resume_job(asking: Asking, job_id: str) -> dict[str, Any]:
    """Take a job up again that failed or was cancelled."""
    return job_json(asking.client.jobs.get(job_id).resume())


@router.delete("/{job_id}", status_code=204)
def delete_job(asking: Asking, job_id: str) -> None:
    """Delete a job that is over and that nothing needs."""
    asking.client.jobs.delete(job_id)


@router.get("/{job_id}/events")
async def follow_job(
    request: Request, asking: Asking, job_id: str, last_event_id: Annotated[str, Header(max_length=60)] = ""
) -> StreamingResponse:
    """Events as they happen (server-sent events), from the first that is kept, until the job is over."""
    handle = await run_in_threadpool(asking.client.jobs.get, job_id)  # asked with the viewer's own token
    events = request.app.state.following.events(handle.id, asking=asking, cursor=last_event_id)
    first = await anext(events, None)  # raises what is wrong before the answer begins
    clients: Clients = request.app.state.clients

    async def stream() -> AsyncIterator[str]:
        async with aclosing(events):
            event, looked_at = first, time.monotonic()
            while True:
                yield ":\n\n" if event is None else f"id: {event.cursor}\ndata: {_line(event)}\n\n"
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
                if time.monotonic() - looked_at > RECHECK_S:
                    looked_at = time.monotonic()
                    await run_in_threadpool(clients.of, asking.token)  # its end is the end of this stream
        yield "event: over\ndata: {}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


@router.get("/{job_id}/curves")
def get_curves(asking: Asking, job_id: str, points: Annotated[int, Query(ge=2, le=5000)] = 600) -> dict[str, Any]:
    """What was measured step by step, thinned to so many points: `{steps, series: {name: [value, ...]}}`."""
    return curves(asking.client.jobs.get(job_id), points=points)


@router.get("/{job_id}/log")
def get_log(asking: Asking, job_id: str, attempt: int | None = None) -> PlainTextResponse:
    """The end of what an attempt printed."""
    return PlainTextResponse(asking.client.jobs.get(job_id).logs(attempt))


@router.get("/{job_id}/artifacts")
def list_artifacts(asking: Asking, job_id: str) -> list[dict[str, Any]]:
    """Reports, plots and ledgers that the job left."""
    entries = asking.client.jobs.get(job_id).artifacts()
    return [{"name": entry.path, "size_bytes": entry.size_bytes, "sha256": entry.sha256} for entry in entries]


@router.get("/{job_id}/artifacts/{name:path}")
def read_artifact(asking: Asking, job_id: str, name: str) -> Response:
    """One of them. What it holds came from a model or a client: a browser saves it, and runs nothing of it."""
    content = asking.client.jobs.get(job_id).read_artifact(name)
    kind = "image/png" if name.endswith(".png") else "application/octet-stream"
    return Response(content, media_type=kind)


def _line(event: JobEvent) -> str:
    """In JSON as browsers read it, where what is no number is null."""
    return to_json(event_json(event), inf_nan_mode="null").decode()


def _create(kind: JobKind, spec: type[Spec]) -> Callable[..., dict[str, Any]]:
    def create(
        asking: Asking,
        spec: spec,  # type: ignore[valid-type]
        name: Annotated[str, Query(max_length=200)] = "",
        request_id: Annotated[str | None, Query(max_length=128)] = None,
    ) -> dict[str, Any]:
        given = spec.model_dump(mode="json", exclude_unset=True)  # type: ignore[attr-defined]
        return job_json(asking.client.jobs.create(kind, given, name=name, request_id=request_id).job)

    create.__doc__ = (spec.__doc__ or "").partition("\n\n")[0]
    create.__name__ = f"create_{kind.value}"
    return create


for _kind in KINDS.values():
    router.post(f"/{_kind.name.value}", status_code=201)(_create(_kind.name, _kind.spec))
