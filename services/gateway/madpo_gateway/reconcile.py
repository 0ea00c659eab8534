"""The object store remembers every job; this brings back those the queue has lost, and ends those nobody works on."""

import asyncio
import logging

from madpo.errors import CorruptObjectError, NotFoundError, UnknownFormatError
from madpo.ports import JobQueue, JobRequest, ObjectStore
from madpo.storage import keys
from madpo.storage.checkpoints import owning_attempt
from madpo.storage.results import JobOutcome, read_result, read_spec, resumes_of, write_result
from madpo.types import Job
from madpo_gateway.requests import MAX_PAGE_SIZE

logger = logging.getLogger(__name__)


async def reconcile(*, store: ObjectStore, queue: JobQueue) -> int:
    """Write back all jobs the queue lost; returns how many. Those that were not over start again.

    One whose documents cannot be read is reported and left alone: it keeps nobody else waiting.
    """
    known = await _known_job_ids(queue)
    lost = [job_id for job_id in await asyncio.to_thread(_kept_job_ids, store) if job_id not in known]
    restored = 0
    for job_id in lost:
        try:
            restored += await restore_job(job_id, store=store, queue=queue)
        except (CorruptObjectError, UnknownFormatError) as error:
            logger.error("job cannot be restored", extra={"job_id": job_id, "error": str(error)})
    if restored:
        logger.warning("jobs restored from the object store", extra={"jobs": restored})
    return restored


async def restore_job(job_id: str, *, store: ObjectStore, queue: JobQueue) -> bool:
    """Write back one job as the store remembers it; False when the store does not know it either.

    Raises:
        CorruptObjectError: A document of it was changed.
        UnknownFormatError: A newer version wrote one.
    """
    try:
        job, outcome, attempt, resumes = await asyncio.to_thread(_remember, store, job_id)
    except NotFoundError:
        return False
    request = JobRequest(
        "",
        job.kind,
        job.spec,
        display_name=job.display_name,
        depends_on=job.depends_on,
        submitted_by=job.submitted_by,
    )
    await queue.restore(
        request,
        job_id=job_id,
        state=outcome.state,
        result=outcome.result,
        reason=outcome.reason,
        attempt=attempt,
        resumes=resumes,
        create_time=job.create_time,
    )
    return True


async def reap(*, store: ObjectStore, queue: JobQueue) -> int:
    """Take back jobs whose workers went silent, and record those that ended by it; returns how many were taken."""
    jobs = await queue.reap()
    for job in jobs:
        logger.warning("job taken back", extra={"job_id": job.job_id, "state": job.state.value, "reason": job.reason})
        if job.state.is_terminal:
            await asyncio.to_thread(record_outcome, store, job)
    return len(jobs)


def record_outcome(store: ObjectStore, job: Job) -> None:
    """Keep how a job ended."""
    write_result(store, job.job_id, state=job.state, result=job.result, reason=job.reason, resumes=job.resumes)


async def _known_job_ids(queue: JobQueue) -> set[str]:
    known: set[str] = set()
    token = ""
    while True:
        jobs, token = await queue.list(page_size=MAX_PAGE_SIZE, page_token=token)
        known.update(job.job_id for job in jobs)
        if not token:
            return known


def _kept_job_ids(store: ObjectStore) -> list[str]:
    listed = (info.key for info in store.list(f"{keys.JOBS}/"))
    return [job_id for key in listed if key == keys.job_spec(job_id := key.split("/")[1])]


def _remember(store: ObjectStore, job_id: str) -> tuple[Job, JobOutcome, int, int]:
    job = read_spec(store, job_id)
    try:
        outcome = read_result(store, job_id)
    except NotFoundError:
        outcome = JobOutcome(job.state)
    return job, outcome, owning_attempt(store, job_id), resumes_of(store, job_id)
