"""One attempt at a job: a child process does the work, its supervisor here holds the lease and delivers the outcome."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from madpo.config import WorkerSettings
from madpo.errors import MadpoError, OverloadedError, StaleAttemptError, UnavailableError
from madpo.ports import Claim, JobQueue, ObjectStore
from madpo.queue.records import RunEvent
from madpo.storage.logs import LOG_BYTES, write_log
from madpo.storage.open import check_use
from madpo.storage.results import write_result
from madpo.types import Job, JobProgress, JobResult, JobState, LogLine
from madpo.worker.child import Child
from madpo.worker.crash import MemoryKills, describe
from madpo.worker.failure import Failure
from madpo.worker.metrics import WorkerMetrics
from madpo.worker.spare import Spare
from madpo.worker.workspace import Outcome, StopReason, Workspace

logger = logging.getLogger(__name__)

T = TypeVar("T")
AWAY_ERRORS = (UnavailableError, OverloadedError)
"""The queue or the store cannot be used now; asking again may help."""
RETRY_S = 1.0
_LONGEST_PAUSE_S = 5.0
_LOG_LINES_PER_POLL = 100


class Attempt:
    """Runs the command for a claimed job and sees the job through to its next state.

    The run is a process group of its own: its crash never takes the supervisor along, and a step that holds the
    interpreter for minutes cannot keep the lease from being renewed. While Redis is away the run goes on, since
    nobody else can claim the job either; once it answers, either the lease is renewed or the attempt is stale.

    Args:
        claim: What to do.
        queue: Where the claim is from.
        store: Gets the outcome, before the queue if it is a success: jobs that wait for it read it there.
        command: The child process, given the workspace.
        spare: Has a process that is ready, or starts one, or none is wanted.
        settings: Periods and graces.
        stop: Set when the worker should drain.
        metrics: Told of every progress the run reports, and of renewals.
    """

    def __init__(
        self,
        claim: Claim,
        *,
        queue: JobQueue,
        store: ObjectStore,
        command: Callable[[Path], Sequence[str]],
        spare: Spare,
        settings: WorkerSettings,
        stop: asyncio.Event,
        metrics: WorkerMetrics,
    ) -> None:
        self._claim, self._queue, self._store = claim, queue, store
        self._command, self._spare, self._settings, self._stop = command, spare, settings, stop
        self._metrics = metrics
        self._over = asyncio.Event()
        self._cancel_requested = self._delivering = False
        self._asked: StopReason | None = None
        self._phase = ""
        self._is_hung = False
        self._memory_kills = MemoryKills()

    async def run(self) -> str:
        """Returns how the attempt ended: succeeded, failed, cancelled, given_back, interrupted or crashed.

        Raises:
            ExceptionGroup: With StaleAttemptError when the job was lost to another attempt; the run is dead by then.
        """
        workspace = Workspace(self._settings.workspace / "jobs" / self._claim.job.job_id, self._claim)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_lease())
                try:
                    exit_code = await self._run_child(workspace, tasks)
                    await self._keep_log(workspace)
                    crash = describe(workspace.failure(), exit_code, memory_ran_out=self._memory_kills.is_recent)
                    return await self._deliver(workspace.outcome(), crash, workspace.log_tail())
                finally:
                    self._over.set()
        finally:
            workspace.close()

    async def _keep_lease(self) -> None:
        # Ends by a flag: on Python 3.11 `asyncio.wait_for`, which the Redis client uses, can swallow a cancellation.
        while not await wait(self._over, self._settings.renew_s):
            try:
                await self._answer(self._renew)
            except StaleAttemptError:
                # Once the outcome is on its way, it is this attempt itself that ended the lease, or hears so.
                if self._delivering:
                    return
                raise

    async def _renew(self) -> None:
        try:
            await self._queue.renew(self._claim)
        except AWAY_ERRORS:
            self._metrics.renewal_failed()
            raise
        self._metrics.answered()

    async def _run_child(self, workspace: Workspace, tasks: asyncio.TaskGroup) -> int:
        child = await self._spare.take(workspace) or Child.start(
            self._command(workspace.directory), log_path=workspace.log_path, settings=self._settings
        )
        try:
            relay = tasks.create_task(self._relay(workspace, child.exited))
            await self._until_exit(workspace, child)
        finally:
            child.kill()
            self._spare.inherit(child)
            exit_code = await child.exit_code()
            if exit_code:  # whatever it was, the next attempt is to have nothing in common with this one
                await self._spare.discard()
        await relay
        return exit_code

    async def _until_exit(self, workspace: Workspace, child: Child) -> None:
        """Pass on the wish to stop; kill what outlives its grace, also after its last word, and what fell silent."""
        now = asyncio.get_running_loop().time
        deadline: float | None = None
        # Judged by what the run writes, not by what could be passed on: the queue may be away.
        heard_bytes, last_word = 0, now()
        while not child.exited.done():
            wanted: StopReason | None = "cancel" if self._cancel_requested else "drain" if self._stop.is_set() else None
            if wanted and wanted != self._asked:
                workspace.request_stop(wanted)
                self._asked = wanted
            if deadline is None and (self._asked or workspace.outcome()):
                deadline = now() + self._settings.stop_grace_s
            self._memory_kills.look()
            if (said_bytes := workspace.said_bytes()) != heard_bytes:
                heard_bytes, last_word = said_bytes, now()
            self._is_hung = self._is_hung or now() - last_word > self._settings.silence_s
            if self._is_hung or (deadline is not None and now() >= deadline):
                child.kill()
            await asyncio.wait({child.exited}, timeout=self._settings.poll_s)

    async def _relay(self, workspace: Workspace, exited: asyncio.Task[None]) -> None:
        """Publish what the run reports and prints, to its last line; learn of a cancellation."""
        while True:
            ended = exited.done()
            events = [*workspace.new_events(), *_log_events(workspace.new_log_lines(ended=ended))]
            for event in events:
                if isinstance(event, JobProgress):
                    self._phase = event.phase
                    self._metrics.observe(self._claim.job, event)
            if events:
                await self._publish(events)
            elif ended:
                return
            if not ended:
                job = await self._answer(lambda: self._queue.get(self._claim.job.job_id))
                self._cancel_requested = job.cancel_requested
                await asyncio.wait({exited}, timeout=self._settings.poll_s)

    async def _publish(self, events: Sequence[RunEvent]) -> None:
        await self._answer(lambda: self._queue.publish(self._claim, events))

    async def _keep_log(self, workspace: Workspace) -> None:
        """Store the end of the log before the outcome is told, for those who hear of it and look."""
        job_id, text = self._claim.job.job_id, workspace.log_text(LOG_BYTES)
        try:
            await asyncio.to_thread(write_log, self._store, job_id, text, attempt=self._claim.attempt)
        except MadpoError as error:  # the reason has its last lines
            logger.warning("the log was not stored", extra={"job_id": job_id, "error": str(error)})

    async def _deliver(self, outcome: Outcome | None, crash: Failure, log_tail: str) -> str:
        """Tell the queue, then the store; the last word counts, whatever the exit code. Without one it was a crash."""
        match outcome:
            case Outcome("succeeded", result=JobResult() as result):
                await self._succeed(result)
                return "succeeded"
            case Outcome("failed", reason=reason):
                await self._end(lambda: self._queue.fail(self._claim, reason))
                return "failed"
        if self._asked == "cancel":
            await self._end(lambda: self._queue.finish_cancelled(self._claim))
            return "cancelled"
        if self._asked == "drain":
            await self._end(lambda: self._queue.give_back(self._claim))
            return "given_back"
        if await self._store_is_away():
            logger.warning("the run ended while the store could not be used; this counts as no crash")
            await self._end(lambda: self._queue.give_back(self._claim))
            return "given_back"
        return await self._give_back_crashed(Failure(self._describe_silence()) if self._is_hung else crash, log_tail)

    async def _give_back_crashed(self, crash: Failure, log_tail: str) -> str:
        reason = f"{crash.line}\n{log_tail}".strip()
        # Of ranks that only say that another one has ended, that one was on a host that is gone.
        from_outside = crash.from_outside or crash.is_consequence
        await self._end(
            lambda: self._queue.give_back(
                self._claim, reason=reason, fingerprint=crash.fingerprint, from_outside=from_outside
            )
        )
        return "interrupted" if from_outside else "crashed"

    async def _store_is_away(self) -> bool:
        """Whether the store cannot be used; if so, once it can: until then any attempt would end likewise."""
        failure = await self._check_store()
        if failure is None:
            return False
        await self._publish(
            [LogLine(f"the run ended while the object store could not be used; waiting for it: {failure}")]
        )
        drain_until: float | None = None
        pause_s = RETRY_S
        while not await self._is_cancelled() and (failure := await self._check_store()) is not None:
            now = asyncio.get_running_loop().time()
            if self._stop.is_set():
                drain_until = drain_until or now + self._settings.stop_grace_s
                if now >= drain_until:
                    break  # given back all the same: whoever takes it next waits in its place
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    async def _check_store(self) -> MadpoError | None:
        """Why the store cannot be read or written; None where it can, or where something else is wrong with it."""
        try:
            await asyncio.to_thread(check_use, self._store)
        except AWAY_ERRORS as error:
            return error
        except MadpoError:
            return None
        return None

    async def _is_cancelled(self) -> bool:
        job = await self._answer(lambda: self._queue.get(self._claim.job.job_id))
        return job.cancel_requested

    def _describe_silence(self) -> str:
        return (
            f"the run said nothing for {self._settings.silence_s:g} s and was killed as hung; it was at: "
            f"{self._phase or 'its start'} (set {self._settings.variable('silence_s')} if that may take longer)"
        )

    async def _succeed(self, result: JobResult) -> None:
        # The store has no fence for results: ask who owns the job right before the write.
        await self._answer(lambda: self._queue.renew(self._claim))
        await self._record(JobState.SUCCEEDED, result, "")
        self._delivering = True
        await self._answer(lambda: self._queue.succeed(self._claim, result))

    async def _end(self, call: Callable[[], Awaitable[Job]]) -> None:
        self._delivering = True
        job = await self._answer(call)
        if job.state.is_terminal:
            await self._record(job.state, job.result, job.reason)

    async def _record(self, state: JobState, result: JobResult | None, reason: str) -> None:
        job = self._claim.job
        await self._answer(
            lambda: asyncio.to_thread(write_result, self._store, job.job_id, state, result, reason, resumes=job.resumes)
        )

    async def _answer(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer, however long the server is away; a draining worker waits no longer than its grace."""
        now = asyncio.get_running_loop().time
        give_up: float | None = None
        for failures in itertools.count():
            try:
                return await call()
            except AWAY_ERRORS as error:
                if self._stop.is_set():
                    give_up = give_up or now() + self._settings.stop_grace_s
                    if now() >= give_up:
                        raise
                if failures % 60 == 0:
                    fields = {"job_id": self._claim.job.job_id, "error": str(error)}
                    logger.warning("waiting for queue or store; the run goes on", extra=fields)
                await asyncio.sleep(RETRY_S)
        raise AssertionError  # the loop has no end


async def wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the event, but no longer; whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


def _log_events(lines: list[str]) -> list[LogLine]:
    """The newest lines of a poll; a run that prints without end must not flood the event stream."""
    left_out = len(lines) - _LOG_LINES_PER_POLL
    if left_out > 0:
        lines = [f"... {left_out} lines left out ...", *lines[left_out:]]
    return [LogLine(line) for line in lines]
