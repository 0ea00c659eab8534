import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from madpo.errors import InvalidArgumentError, StaleAttemptError, UnavailableError
from madpo.ports import Claim, JobRequest
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.types import JobKind, JobProgress, JobResult, JobState, LogLine, StateChange

QUEUE = "evaluate"


class ReplyThief:
    """A proxy in front of a server that lets commands through and can keep their replies."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.thefts = 0
        self.stolen = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        server_reader, server_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        up = asyncio.create_task(self._forward(reader, server_writer))
        try:
            await self._forward(server_reader, writer, replies=True)
        finally:
            up.cancel()
            for end in (writer, server_writer):
                end.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if replies and self.stolen < self.thefts:
                    self.stolen += 1
                    return
                writer.write(data)
                await writer.drain()


@pytest.fixture
async def thief(each_redis_url: str) -> AsyncIterator[ReplyThief]:
    thief = ReplyThief(each_redis_url)
    yield thief
    await thief.stop()


@pytest.fixture
async def queue(thief: ReplyThief, redis_namespace: str) -> AsyncIterator[RedisJobQueue]:
    queue = connect(await thief.start(), namespace=redis_namespace)
    # Scripts are loaded and the connection greeted, so that what is stolen is the reply of the call under test.
    await queue.ping()
    await warm_up(queue)
    yield queue
    await queue.close()


async def warm_up(queue: RedisJobQueue) -> None:
    for i in range(4):
        await queue.create(request(f"warm-{i}"))
    claims = [await claim(queue) for _ in range(4)]
    await queue.renew(claims[0])
    await queue.publish(claims[0], [LogLine("warm")])
    await queue.succeed(claims[0], JobResult())
    await queue.fail(claims[1], "warm")
    await queue.give_back(claims[2], reason=None)
    await queue.cancel(claims[2].job.job_id)
    await queue.cancel(claims[3].job.job_id)
    await queue.finish_cancelled(claims[3])
    await queue.reap((await queue.leases()).held)


def request(name: str) -> JobRequest:
    return JobRequest(name, JobKind.EVALUATION, {"name": name})


async def claim(queue: RedisJobQueue) -> Claim:
    claimed = await queue.claim(QUEUE, "worker", timeout_s=0)
    assert claimed is not None
    return claimed


def steal(thief: ReplyThief, replies: int = 1) -> None:
    thief.thefts, thief.stolen = replies, 0


@pytest.mark.promise("J2")
async def test_a_lost_reply_to_create_makes_no_second_job(queue: RedisJobQueue, thief: ReplyThief) -> None:
    for i in range(20):
        steal(thief)
        await queue.create(request(f"r{i}"))
        assert thief.stolen == 1
    jobs, _ = await queue.list(page_size=100)
    assert len(jobs) == 24
    assert (await queue.status(QUEUE)).pending == 20


async def test_a_lost_reply_to_claim_loses_no_job_and_takes_no_second(queue: RedisJobQueue, thief: ReplyThief) -> None:
    made = [(await queue.create(request(f"r{i}"))).job_id for i in range(20)]
    taken = []
    for _ in made:
        steal(thief)
        claimed = await claim(queue)
        assert thief.stolen == 1
        taken.append((claimed.job.job_id, claimed.attempt))
    assert taken == [(job_id, 1) for job_id in made]


async def test_a_claim_whose_every_reply_was_lost_is_answered_by_the_next_call(
    queue: RedisJobQueue, thief: ReplyThief
) -> None:
    made = await queue.create(request("r"))
    await queue.create(request("s"))
    steal(thief, 4)
    with pytest.raises(UnavailableError):
        await queue.claim(QUEUE, "worker", timeout_s=0)
    claimed = await claim(queue)
    assert (claimed.job.job_id, claimed.attempt) == (made.job_id, 1)
    assert (await queue.status(QUEUE)).pending == 1


@pytest.mark.parametrize("replies", [1, 4])
async def test_a_lost_reply_to_publish_stores_no_event_twice(
    queue: RedisJobQueue, thief: ReplyThief, replies: int
) -> None:
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    for _ in range(3):
        steal(thief, replies)
        # The same line every time: it is the call that must not be repeated, not its content.
        events = [LogLine("same"), JobProgress(1)]
        try:
            await queue.publish(claimed, events)
        except UnavailableError:
            await queue.publish(claimed, events)
        assert thief.stolen == replies
    await queue.succeed(claimed, JobResult())
    seen = [event.event async for event in queue.watch(job.job_id)]
    assert seen.count(LogLine("same")) == seen.count(JobProgress(1)) == 3


async def test_lost_replies_to_endings_change_nothing(
    queue: RedisJobQueue, thief: ReplyThief, each_redis_url: str, redis_namespace: str
) -> None:
    ended = []
    calls = (
        lambda claimed: queue.succeed(claimed, JobResult("model-1")),
        lambda claimed: queue.fail(claimed, "boom"),
        lambda claimed: queue.finish_cancelled(claimed),
        lambda claimed: queue.give_back(claimed, reason="boom"),
    )
    async with Redis.from_url(each_redis_url) as server:
        for i, call in enumerate(calls):
            await queue.create(request(f"r{i}"))
            claimed = await claim(queue)
            steal(thief)
            job = await call(claimed)
            assert thief.stolen == 1
            ended.append((job.state, job.attempt))
            changes = await server.xlen(Keys(redis_namespace).events(job.job_id))
            assert changes == len(["PENDING", "RUNNING", job.state])
    assert ended == [
        (JobState.SUCCEEDED, 1),
        (JobState.FAILED, 1),
        (JobState.CANCELLED, 1),
        (JobState.PENDING, 1),
    ]


@pytest.mark.promise("J1")
async def test_jobs_leases_and_claims_survive_a_killed_server(redis_process: Any, redis_namespace: str) -> None:
    queue = connect(redis_process.url, namespace=redis_namespace)
    made = [await queue.create(request(f"r{i}")) for i in range(20)]
    claimed = await claim(queue)
    await queue.publish(claimed, [LogLine("before")])
    redis_process.kill()
    with pytest.raises(UnavailableError, match=f"{redis_process.port}"):
        await queue.renew(claimed)
    redis_process.start()
    await queue.renew(claimed)
    assert (await queue.succeed(claimed, JobResult())).state == JobState.SUCCEEDED
    seen = [event.event async for event in queue.watch(claimed.job.job_id)]
    assert LogLine("before") in seen
    taken = [(await claim(queue)).job.job_id for _ in range(19)]
    assert [claimed.job.job_id, *taken] == [job.job_id for job in made]
    await queue.close()


async def test_a_watch_and_a_waiting_claim_report_a_killed_server(redis_process: Any, redis_namespace: str) -> None:
    queue = connect(redis_process.url, namespace=redis_namespace)
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    watch = queue.watch(job.job_id)
    cursor = [await anext(watch) for _ in range(2)][-1].cursor
    following = asyncio.create_task(anext(watch))
    waiting = asyncio.create_task(queue.claim(QUEUE, "other", timeout_s=60))
    await asyncio.sleep(0.1)
    redis_process.kill()
    for task in (following, waiting):
        with pytest.raises(UnavailableError):
            await task
    redis_process.start()
    await queue.succeed(claimed, JobResult())
    (rest,) = [event.event async for event in queue.watch(job.job_id, cursor=cursor)]
    assert rest == StateChange(JobState.SUCCEEDED, 1)
    await queue.close()


async def test_an_emptied_server_fences_every_claim(each_redis_url: str, redis_namespace: str) -> None:
    queue = connect(each_redis_url, namespace=redis_namespace)
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    async with Redis.from_url(each_redis_url) as server:
        keys = Keys(redis_namespace)
        await server.delete(keys.job(job.job_id), keys.leases, keys.jobs)
    with pytest.raises(StaleAttemptError, match="unknown"):
        await queue.renew(claimed)
    restored = await queue.restore(request("r"), job_id=job_id_of("r"), state=JobState.RUNNING, attempt=1)
    assert restored.state == JobState.PENDING
    with pytest.raises(StaleAttemptError):
        await queue.succeed(claimed, JobResult())
    assert (await claim(queue)).attempt == 2
    await queue.close()


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    queue = connect("redis://user:hunter2@127.0.0.1:1/0")
    with pytest.raises(UnavailableError, match=r"redis://127\.0\.0\.1:1/0") as caught:
        await queue.ping()
    assert "hunter2" not in str(caught.value)
    await queue.close()


def test_a_wrong_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidArgumentError, match="redis_url") as caught:
        connect("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)
