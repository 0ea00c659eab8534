"""What is still needed, by jobs that are not over and by adapters of a model, and so is not deleted."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference, references
from madpo.jobs.registry import parse_spec
from madpo.ports import JobQueue, ObjectStore
from madpo.storage.references import checkpoint_bases
from madpo.types import Job
from madpo_gateway.requests import MAX_PAGE_SIZE
from madpo_gateway.spool import run_blocking


class Shelf(Protocol):
    """Where things are, each under its id."""

    def withdraw(self, thing_id: str, /) -> bytes:
        """Take it out of sight. Raises NotFoundError."""

    def put_back(self, thing_id: str, manifest: bytes, /) -> None:
        """Show it again."""

    def delete(self, thing_id: str, /) -> None:
        """Remove it, in sight or not."""


async def delete_unused(thing_id: str, shelf: Shelf, require_unused: Callable[[], Awaitable[None]]) -> None:
    """Remove what nothing needs, nor has begun to need while that was found out.

    A job is queued before what it refers to is looked up for the last time. Here the thing is out of sight before jobs
    are looked at for the last time: of the two, whichever gateways they are asked of, at least one notices the other.

    Args:
        thing_id: What to remove.
        shelf: Where it is.
        require_unused: Raises where something needs it.

    Raises:
        NotFoundError: It is not there.
        MadpoError: What `require_unused` raises; the thing is there as before.
    """
    await require_unused()
    manifest = await run_blocking(shelf.withdraw, thing_id)
    try:
        await require_unused()
    except BaseException:  # also where the caller went away
        await run_blocking(shelf.put_back, thing_id, manifest)
        raise
    await run_blocking(shelf.delete, thing_id)


async def require_no_checkpoints(model_id: str, *, store: ObjectStore, queue: JobQueue) -> None:
    """Raises FailedPreconditionError when checkpoints of a job are adapters of the model; names the job."""
    async for job in _jobs(queue):
        training = job.spec.get("training")
        if not isinstance(training, Mapping) or training.get("lora") is None:
            continue
        if model_id in await asyncio.to_thread(checkpoint_bases, job.job_id, store):
            raise FailedPreconditionError(
                f"checkpoints of {job.job_id}, which is {job.state}, are adapters of {model_id}: delete that job first"
            )


async def require_unused(thing_id: str, queue: JobQueue) -> None:
    """Raises FailedPreconditionError when a job that is not over needs this model, dataset or job; names the job."""
    async for job in _jobs(queue):
        if not job.state.is_terminal and job.job_id != thing_id and await _uses(job, thing_id, queue):
            raise FailedPreconditionError(
                f"{thing_id} is used by {job.job_id}, which is {job.state}: cancel it or wait for its end"
            )


async def _uses(job: Job, thing_id: str, queue: JobQueue) -> bool:
    """Whether a job's spec names the thing, or the job that left it."""
    if thing_id in job.depends_on:
        return True
    try:
        targets = [reference.target for reference in references(parse_spec(job.kind, job.spec))]
    except InvalidArgumentError:  # of another version; what cannot be read may well be in use
        return thing_id in json.dumps(dict(job.spec))
    for target in targets:
        if isinstance(target, str):
            if target == thing_id:
                return True
            continue
        named = target.model_id if isinstance(target, ModelReference) else target.dataset_id
        if thing_id in (named, target.job_id):
            return True
        if target.job_id is not None and await _has_left(target, thing_id, queue):
            return True
    return False


async def _has_left(target: ModelReference | DatasetReference, thing_id: str, queue: JobQueue) -> bool:
    try:
        result = (await queue.get(target.job_id or "")).result
    except NotFoundError:
        return False
    return result is not None and thing_id in (result.model_id, result.dataset_id)


async def _jobs(queue: JobQueue) -> AsyncIterator[Job]:
    token = ""
    while True:
        jobs, token = await queue.list(page_size=MAX_PAGE_SIZE, page_token=token)
        for job in jobs:
            yield job
        if not token:
            return
