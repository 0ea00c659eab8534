"""The object store remembers every job; this brings the queue to what it has lost, and ends jobs nobody works on.

The store knows what was asked for and acknowledged (requests, resumptions, cancellations) and how jobs ended; the queue
knows all in between. So after a loss the store is right where it knows more, and else the queue.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from madpo.errors import (
    BeingRemovedError,
    CorruptObjectError,
    FailedPreconditionError,
    MadpoError,
    NotFoundError,
    UnknownFormatError,
)
from madpo.ports import JobQueue, JobRequest, ObjectStore, UnreadableJob
from madpo.queue.reaper import Reaper
from madpo.storage import keys
from madpo.storage.checkpoints import owning_attempt
from madpo.storage.results import JobOutcome, accept_resume, read_spec, read_standing, write_result
from madpo.types import Job, JobState

logger = logging.getLogger(__name__)

_AT_ONCE = 16
CANCELLED = "cancelled on request"


async def reconcile(*, store: ObjectStore, queue: JobQueue) -> int:
    """Bring all jobs to where the store knows them to be; returns how many were not.

    Those that the queue has lost are written back, and start again where they were not over. Those of which it has lost
    the last changes, restored from an older copy, end as they did, and are cancelled or resumed as was asked for.
    One whose documents cannot be read is reported and left alone: it keeps nobody else waiting.
    """
    # In this order: a request is kept before its job is queued.
    found = [job async for job in queue.scan()]
    known = {job.job_id: job for job in found if isinstance(job, Job)}
    kept = await asyncio.to_thread(_kept_job_ids, store)
    count = 0
    # What the queue has of a job that cannot be read here is for a newer version to bring on.
    job_ids = sorted(kept - {job.job_id for job in found if not isinstance(job, Job)})
    for first in range(0, len(job_ids), _AT_ONCE):
        batch = job_ids[first : first + _AT_ONCE]
        works = (_bring(job_id, known.get(job_id), store=store, queue=queue) for job_id in batch)
        for changed in await asyncio.gather(*works, return_exceptions=True):
            if isinstance(changed, BaseException):
                raise changed
            count += changed
    count += await _cancel_deleted(known, bool(kept), store=store, queue=queue)
    if count:
        logger.warning("jobs restored from the object store", extra={"jobs": count})
    return count


class Reconciler:
    """Knows whether the queue may have lost something since it was brought to what the store knows.

    Args:
        store: Which remembers every job.
        queue: Which may lose some.
        count: Told of jobs that were brought back.
    """

    def __init__(
        self, *, store: ObjectStore, queue: JobQueue, count: Callable[[int], object] = lambda jobs: None
    ) -> None:
        self._store, self._queue, self._count = store, queue, count
        self._server_id = ""

    async def run(self) -> None:
        """See `reconcile`."""
        server_id = await self._queue.server_id()
        self._count(await reconcile(store=self._store, queue=self._queue))
        self._server_id = server_id

    async def may_lack_jobs(self) -> bool:
        """Whether the server was emptied or started since, or is another one, and so may have come back with less."""
        return await self._queue.server_id() != self._server_id

    async def all_jobs(self, *, but_for: str = "") -> list[Job | UnreadableJob]:
        """All jobs there are, once the queue has every one that the store has: what is needed can be told from them.

        Args:
            but_for: The id of a job that need not be among them.

        Raises:
            FailedPreconditionError: A job cannot be restored; names it.
        """
        jobs, lost = await self._compare()
        if not lost and not await self.may_lack_jobs():
            return jobs
        await self.run()
        jobs, lost = await self._compare()
        if lost := [job_id for job_id in lost if job_id != but_for]:
            others = f" and {len(lost) - 1} more" if lost[1:] else ""
            raise FailedPreconditionError(
                "nothing is removed while the queue lacks a job that the object store has, and that cannot be restored:"
                f" {lost[0]}{others} (the gateway's log says why); upgrade madpo, put its spec.json back from a backup,"
                " or delete that job"
            )
        return jobs

    async def _compare(self) -> tuple[list[Job | UnreadableJob], list[str]]:
        """The jobs that the queue has, and the ids of those that only the store has."""
        # In this order: a request is kept before its job is queued.
        kept = await asyncio.to_thread(_kept_job_ids, self._store)
        jobs = [job async for job in self._queue.scan()]
        lost = sorted(kept - {job.job_id for job in jobs})
        return jobs, [job_id for job_id in lost if await asyncio.to_thread(_is_asked_for, self._store, job_id)]


def _is_asked_for(store: ObjectStore, job_id: str) -> bool:
    """Whether a request is there that a queue has taken, or may have."""
    try:
        read_spec(store, job_id, only_accepted=True)
    except NotFoundError:
        return False
    except (CorruptObjectError, UnknownFormatError):
        return True
    return True


async def _bring(job_id: str, known: Job | None, *, store: ObjectStore, queue: JobQueue) -> bool:
    try:
        if known is None:
            return await restore_job(job_id, store=store, queue=queue)
        if not await asyncio.to_thread(_is_kept, store, job_id):
            return False  # its deletion was broken off
        return await _catch_up(known, store=store, queue=queue)
    except (CorruptObjectError, UnknownFormatError) as error:
        logger.error("job cannot be restored", extra={"job_id": job_id, "error": str(error)})
        return False


async def restore_job(job_id: str, *, store: ObjectStore, queue: JobQueue) -> bool:
    """Write back one job as the store remembers it; False when the store does not know it either.

    Raises:
        CorruptObjectError: A document of it was changed.
        UnknownFormatError: A newer version wrote one.
    """
    try:
        job = await asyncio.to_thread(read_spec, store, job_id, only_accepted=True)
    except NotFoundError:
        return False
    standing = await asyncio.to_thread(read_standing, store, job_id)
    outcome = standing.outcome
    if outcome is None and standing.cancel_requested:
        outcome = JobOutcome(JobState.CANCELLED, reason=CANCELLED)
    restored = await _restore(job, outcome, standing.resumes, store=store, queue=queue)
    if restored.state.is_terminal and standing.outcome is None:
        await asyncio.to_thread(record_outcome, store, restored)
    return True


async def find_job(job_id: str, *, store: ObjectStore, queue: JobQueue) -> Job:
    """A job as the queue has it; one that the queue has lost is brought back first.

    Raises:
        NotFoundError: There is none.
        CorruptObjectError, UnknownFormatError: See `restore_job`.
    """
    try:
        return await queue.get(job_id)
    except BeingRemovedError:
        raise
    except NotFoundError:
        if not await restore_job(job_id, store=store, queue=queue):
            raise
        return await queue.get(job_id)


async def _catch_up(job: Job, *, store: ObjectStore, queue: JobQueue) -> bool:
    """Bring a job that the queue has to what the store knows beyond that; whether there was anything."""
    standing = await asyncio.to_thread(read_standing, store, job.job_id)
    if standing.resumes < job.resumes:  # the gateway ended between the two
        await asyncio.to_thread(accept_resume, store, job)
        return False
    if standing.outcome is not None:
        if job.state.is_terminal and standing.resumes <= job.resumes:
            return False
        await _restore(job, standing.outcome, standing.resumes, store=store, queue=queue)
        return True
    if job.state.is_terminal:
        return await _catch_up_ended(job, standing.resumes, store=store, queue=queue)
    if standing.cancel_requested and standing.resumes == job.resumes and not job.cancel_requested:
        cancelled = await queue.cancel(job.job_id)
        if cancelled.state.is_terminal:
            await asyncio.to_thread(record_outcome, store, cancelled)
        return True
    restored = await _restore(job, None, standing.resumes, store=store, queue=queue)
    return (restored.attempt, restored.resumes) != (job.attempt, job.resumes)


async def _catch_up_ended(job: Job, resumes: int, *, store: ObjectStore, queue: JobQueue) -> bool:
    """A job that has ended for the queue, but not for the store."""
    if resumes <= job.resumes:
        await asyncio.to_thread(record_outcome, store, job)
        return False
    try:
        await queue.resume(job.job_id, resumes=resumes - 1)
    except MadpoError as error:
        logger.error("job cannot be resumed again", extra={"job_id": job.job_id, "error": str(error)})
        return False
    return True


async def _restore(job: Job, outcome: JobOutcome | None, resumes: int, *, store: ObjectStore, queue: JobQueue) -> Job:
    outcome = outcome or JobOutcome(JobState.PENDING)
    request = JobRequest(
        "",
        job.kind,
        job.spec,
        display_name=job.display_name,
        depends_on=job.depends_on,
        submitted_by=job.submitted_by,
        metadata=job.metadata,
    )
    return await queue.restore(
        request,
        job_id=job.job_id,
        state=outcome.state,
        result=outcome.result,
        reason=outcome.reason,
        attempt=await asyncio.to_thread(owning_attempt, store, job.job_id),
        resumes=resumes,
        create_time=job.create_time,
    )


async def _cancel_deleted(known: Mapping[str, Job], has_any: bool, *, store: ObjectStore, queue: JobQueue) -> int:
    """Cancel jobs that were deleted since an older copy of the queue was made; how many there were."""
    going_on = [job_id for job_id, job in known.items() if not job.state.is_terminal]
    deleted = [job_id for job_id in going_on if not await asyncio.to_thread(_is_kept, store, job_id)]
    if deleted and not has_any:
        logger.error("the queue has jobs, and the object store has none: is it the right one?", extra={"jobs": deleted})
        return 0
    for job_id in deleted:
        await queue.cancel(job_id)
        logger.warning("job cancelled: the object store has no such job, it was deleted", extra={"job_id": job_id})
    return len(deleted)


async def reap(reaper: Reaper, *, store: ObjectStore) -> int:
    """Take back jobs whose workers went silent, and record those that ended by it; returns how many were taken."""
    jobs = await reaper.reap()
    for job in jobs:
        logger.warning("job taken back", extra={"job_id": job.job_id, "state": job.state.value, "reason": job.reason})
        if job.state.is_terminal:
            await asyncio.to_thread(record_outcome, store, job)
    return len(jobs)


def record_outcome(store: ObjectStore, job: Job) -> None:
    """Keep how a job ended."""
    write_result(store, job.job_id, state=job.state, result=job.result, reason=job.reason, resumes=job.resumes)


def _kept_job_ids(store: ObjectStore) -> set[str]:
    """Ids of jobs of which anything is kept; of one whose deletion was broken off that may be all but its request."""
    return set(store.list_names(keys.JOBS))


def _is_kept(store: ObjectStore, job_id: str) -> bool:
    return store.head(keys.job_spec(job_id)) is not None
