"""Jobs of an evaluation queue, and what is seen of them."""

import contextlib
from collections.abc import Sequence

from redis.asyncio import Redis

from madpo.ports import Claim, JobRequest
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import Job, JobEvent, JobKind, JobState, StateChange

QUEUE = "evaluate"


def request(name: str, *, depends_on: tuple[str, ...] = (), max_attempts: int = 3) -> JobRequest:
    return JobRequest(name, JobKind.EVALUATION, {"name": name}, depends_on=depends_on, max_attempts=max_attempts)


async def claim(queue: RedisJobQueue, worker_id: str = "worker") -> Claim:
    claimed = await queue.claim(QUEUE, worker_id, timeout_s=0)
    assert claimed is not None
    return claimed


async def reap(queue: RedisJobQueue, *job_ids: str) -> Sequence[Job]:
    """As a process that has seen the leases of these jobs run out."""
    leases = (await queue.leases()).held
    return await queue.reap([lease for lease in leases if lease.job_id in job_ids])


async def end_pause(server: Redis, keys: Keys, job_id: str) -> None:
    """Let the time pass that an interrupted job waits."""
    await server.hdel(keys.job(job_id), "not_before_ms")


async def events(queue: RedisJobQueue, job_id: str, *, cursor: str = "") -> list[JobEvent]:
    return [event async for event in queue.watch(job_id, cursor=cursor)]


async def first_events(queue: RedisJobQueue, job_id: str, *, count: int) -> list[JobEvent]:
    async with contextlib.aclosing(queue.watch(job_id)) as watch:
        return [await anext(watch) for _ in range(count)]


def states(watched: list[JobEvent]) -> list[JobState]:
    return [event.event.state for event in watched if isinstance(event.event, StateChange)]
