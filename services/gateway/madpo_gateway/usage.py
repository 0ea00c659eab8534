"""What is still needed: by jobs that are not over, and by adapters of a model."""

import json
from collections.abc import AsyncIterator

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference, references
from madpo.jobs.registry import parse_spec
from madpo.ports import JobQueue
from madpo.types import Job
from madpo_gateway.requests import MAX_PAGE_SIZE


async def require_unused(thing_id: str, queue: JobQueue) -> None:
    """Raises FailedPreconditionError when a job that is not over needs this model, dataset or job; names the job."""
    async for job in _unfinished_jobs(queue):
        if job.job_id != thing_id and await _uses(job, thing_id, queue):
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


async def _unfinished_jobs(queue: JobQueue) -> AsyncIterator[Job]:
    token = ""
    while True:
        jobs, token = await queue.list(page_size=MAX_PAGE_SIZE, page_token=token)
        for job in jobs:
            if not job.state.is_terminal:
                yield job
        if not token:
            return
