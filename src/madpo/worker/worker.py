"""A worker: claims jobs of one queue, one at a time, and takes back the jobs of workers that died."""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.config import WorkerSettings
from madpo.errors import InvalidArgumentError, MadpoError, StaleAttemptError
from madpo.ports import Claim, JobQueue, ObjectStore
from madpo.queue.reaper import Reaper
from madpo.storage.local_copies import LocalCopies
from madpo.storage.results import write_result
from madpo.types import Job
from madpo.worker.attempt import AWAY_ERRORS, RETRY_S, Attempt, wait
from madpo.worker.metrics import WorkerMetrics
from madpo.worker.spare import Spare

logger = logging.getLogger(__name__)

_CLAIM_WAIT_S = 1.0
# After a failure of the worker's own (disk full, command missing), so that it does not burn through the queue.
_PAUSE_S = 5.0


class JobWorker:
    """Runs the jobs of one queue as child processes.

    Args:
        queue: Where jobs come from.
        store: Gets the outcome of each job.
        queue_name: Which queue.
        command: The child process of a job, given its workspace; see `madpo.worker.workspace.Run`.
        settings: Periods, graces and the directory workspaces are made in.
        spare: The command of a child process that waits for its workspace; see `Spare`.
        registry: For metrics; None keeps them to itself.
        worker_id: Unique among all workers; None makes one.
        abilities: Names of what this worker can do that not all of its queue can; None where they are all alike.

    Raises:
        InvalidArgumentError: Leases would run out between renewals.
    """

    def __init__(
        self,
        queue: JobQueue,
        store: ObjectStore,
        *,
        queue_name: str,
        command: Callable[[Path], Sequence[str]],
        settings: WorkerSettings,
        spare: Sequence[str] | None = None,
        registry: CollectorRegistry | None = None,
        worker_id: str | None = None,
        abilities: Collection[str] | None = None,
    ) -> None:
        if settings.renew_s > settings.lease_s / 2:
            raise InvalidArgumentError(
                f"renew_s must be at most half of lease_s ({settings.lease_s}), got {settings.renew_s}"
            )
        self._queue, self._store, self._queue_name = queue, store, queue_name
        self._command, self._settings, self._abilities = command, settings, abilities
        self._spare = Spare(spare, settings)
        self._metrics = WorkerMetrics(registry or CollectorRegistry(), queue_name)
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; the running job is then asked for a checkpoint and given back."""
        with self._spare.kept():
            await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            reaper = tasks.create_task(self._reap(stop))
            if self._abilities is not None:
                tasks.create_task(self._announce(self._abilities, stop))
            await trim_copies(self._settings)
            try:
                while not (stop.is_set() or reaper.done()):
                    claim = await self._claim(stop)
                    if claim is None:
                        await self._spare.keep()
                    elif stop.is_set():
                        await self._give_back(claim)
                    else:
                        await self._attempt(claim, stop)
                        await trim_copies(self._settings)
                        self._spare.rest()
            finally:
                await self._spare.discard()

    async def _claim(self, stop: asyncio.Event) -> Claim | None:
        try:
            claim = await self._queue.claim(
                self._queue_name, self.worker_id, timeout_s=_CLAIM_WAIT_S, abilities=self._abilities or ()
            )
        except AWAY_ERRORS as error:
            logger.warning("cannot claim jobs", extra={"queue": self._queue_name, "error": str(error)})
            await wait(stop, RETRY_S)
            return None
        self._metrics.answered()
        return claim

    async def _attempt(self, claim: Claim, stop: asyncio.Event) -> None:
        fields = {"job_id": claim.job.job_id, "attempt": claim.attempt}
        logger.info("job claimed", extra=fields)
        attempt = Attempt(
            claim,
            queue=self._queue,
            store=self._store,
            command=self._command,
            spare=self._spare,
            settings=self._settings,
            stop=stop,
            metrics=self._metrics,
        )
        outcome = "lost"
        self._metrics.begin(claim.job)
        try:
            outcome = await attempt.run()
        except* StaleAttemptError as errors:
            logger.warning("job lost to another attempt", extra=fields | {"error": str(errors.exceptions[0])})
        except* AWAY_ERRORS as errors:
            outcome = "given_back"
            logger.warning("queue or store away while draining", extra=fields | {"error": str(errors.exceptions[0])})
            await self._give_back(claim)
        except* Exception as errors:
            outcome = "crashed"
            logger.exception("the worker failed at a job", extra=fields)
            await self._give_back(claim, reason=f"worker {self.worker_id} failed: {errors.exceptions[0]}")
            await wait(stop, _PAUSE_S)
        self._metrics.end(outcome)
        logger.info("attempt ended", extra=fields | {"outcome": outcome})

    async def _give_back(self, claim: Claim, *, reason: str | None = None) -> None:
        try:
            job = await self._queue.give_back(claim, reason=reason, from_outside=reason is not None)
            await self._record(job)
        except MadpoError as error:
            logger.warning("job could not be given back", extra={"job_id": claim.job.job_id, "error": str(error)})

    async def _announce(self, abilities: Collection[str], stop: asyncio.Event) -> None:
        """Tell what this worker can do, as often as it renews leases."""
        while not stop.is_set():
            try:
                await self._queue.announce(self._queue_name, self.worker_id, abilities)
            except AWAY_ERRORS as error:
                logger.warning("cannot announce", extra={"queue": self._queue_name, "error": str(error)})
            await wait(stop, self._settings.renew_s)

    async def _reap(self, stop: asyncio.Event) -> None:
        """Take back jobs whose workers fell silent."""
        reaper = Reaper(self._queue, lease_s=self._settings.lease_s)
        while not stop.is_set():
            period_s = self._settings.renew_s
            try:
                for job in await reaper.reap():
                    logger.warning("job taken back", extra={"job_id": job.job_id, "reason": job.reason})
                    await self._record(job)
            except AWAY_ERRORS:
                period_s = RETRY_S
            await wait(stop, period_s)

    async def _record(self, job: Job) -> None:
        if job.state.is_terminal:
            await asyncio.to_thread(
                write_result, self._store, job.job_id, job.state, job.result, job.reason, resumes=job.resumes
            )


async def trim_copies(settings: WorkerSettings) -> None:
    """Remove the local copies that are too many or too old; a worker does so between jobs."""
    copies = LocalCopies(settings.copies)
    try:
        await asyncio.to_thread(copies.trim, max_bytes=settings.max_cache_bytes, max_age_s=settings.max_cache_age_s)
    except OSError as error:
        logger.warning("local copies could not be removed", extra={"error": str(error)})
