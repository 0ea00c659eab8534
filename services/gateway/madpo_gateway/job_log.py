"""What attempts printed: from the store once they have ended, from the job's events until then."""

import asyncio
from collections import deque

from madpo.errors import NotFoundError
from madpo.ports import JobQueue, ObjectStore
from madpo.storage.logs import read_log
from madpo.types import Job, JobState, LogLine, StateChange

_LINES = 10_000


async def job_log(job: Job, attempt: int, *, store: ObjectStore, queue: JobQueue) -> tuple[bytes, str]:
    """The text of an attempt's log; and where a watch goes on behind it, or "" once the attempt has ended.

    Raises:
        NotFoundError: There is no such attempt, or nothing is left of its log.
    """
    if not job.attempt:
        raise NotFoundError(f"{job.job_id} has no log yet: it has not started")
    try:
        return await asyncio.to_thread(read_log, store, job.job_id, attempt=attempt), ""
    except NotFoundError:
        lines, cursor = await _said_so_far(job, attempt, queue)
        is_running = job.state is JobState.RUNNING and attempt == job.attempt
        if not lines and not is_running:
            raise
        return "\n".join(lines).encode(), cursor if is_running else ""


async def _said_so_far(job: Job, attempt: int, queue: JobQueue) -> tuple[deque[str], str]:
    """The log lines among the events of an attempt, and the cursor of the last event."""
    lines: deque[str] = deque(maxlen=_LINES)
    at, cursor = 0, ""
    async for event in queue.watch(job.job_id, past_only=True):
        cursor = event.cursor
        match event.event:
            case StateChange(JobState.RUNNING, number):
                at = number
            case LogLine(line) if at == attempt:
                lines.append(line)
    return lines, cursor
