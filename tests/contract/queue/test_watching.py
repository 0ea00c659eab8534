"""Many watches of one client: what they cost the server, and what each of them sees."""

import asyncio
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from madpo.errors import UnavailableError
from madpo.ports import Claim
from madpo.queue import watching
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import JobEvent, JobResult, JobState, LogLine, StateChange
from tests.contract.queue.jobs import claim, events, request

WATCHERS = 300


async def running_jobs(queue: RedisJobQueue, count: int) -> list[Claim]:
    for number in range(count):
        await queue.create(request(f"r{number}"))
    return [await claim(queue) for _ in range(count)]


def lines(seen: list[JobEvent]) -> list[str]:
    return [event.event.line for event in seen if isinstance(event.event, LogLine)]


async def connections(server: Redis) -> int:
    return len(await server.client_list())


async def all_wait(queue: RedisJobQueue, count: int) -> None:
    """Until so many watches are at the end of what there is."""
    while sum(feed.watchers for feed in queue._watches._feeds._feeds.values()) < count:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("jobs", [1, 100])
async def test_watches_share_a_connection_and_each_sees_everything(
    queue: RedisJobQueue, server: Redis, jobs: int
) -> None:
    claims = await running_jobs(queue, jobs)
    watched = [asyncio.create_task(events(queue, claims[number % jobs].job.job_id)) for number in range(WATCHERS)]
    await all_wait(queue, WATCHERS)
    before = await connections(server)
    async with asyncio.timeout(60):
        for claimed in claims:
            await queue.publish(claimed, [LogLine("one"), LogLine("two")])
            await queue.succeed(claimed, JobResult())
        seen = await asyncio.gather(*watched)

    assert all(lines(each) == ["one", "two"] for each in seen)
    assert all(each[-1].event == StateChange(JobState.SUCCEEDED, 1) for each in seen)
    # Those that read by themselves, the one that reads for all, and what the calls of this test take.
    assert before <= watching._LOOKING_AT_ONCE + 5
    assert queue._watches._feeds._feeds == {}


async def test_calls_find_a_connection_while_all_watches_begin(queue: RedisJobQueue, server: Redis) -> None:
    (claimed,) = await running_jobs(queue, 1)
    watched = [asyncio.create_task(events(queue, claimed.job.job_id)) for _ in range(WATCHERS)]
    async with asyncio.timeout(60):
        calls = await asyncio.gather(*(queue.get(claimed.job.job_id) for _ in range(WATCHERS)))
        await queue.succeed(claimed, JobResult())
        await asyncio.gather(*watched)

    assert len(calls) == WATCHERS
    assert await connections(server) < 100


@pytest.mark.promise("J7")
async def test_a_watch_that_is_slow_misses_nothing_and_nothing_is_kept_for_it(queue: RedisJobQueue) -> None:
    (claimed,) = await running_jobs(queue, 1)
    published = [str(number) for number in range(3 * watching._EVENTS_KEPT)]
    async with asyncio.timeout(60), aclosing(queue.watch(claimed.job.job_id)) as slow:  # type: ignore[type-var]
        quick = asyncio.create_task(events(queue, claimed.job.job_id))
        seen = [await anext(slow) for _ in range(2)]
        following = asyncio.create_task(anext(slow))
        await all_wait(queue, 2)
        await queue.publish(claimed, [LogLine(published[0])])
        seen.append(await following)  # now it is behind, and asks for nothing more
        feed = queue._watches._feeds._feeds[claimed.job.job_id]
        for start in range(1, len(published), 50):
            await queue.publish(claimed, [LogLine(line) for line in published[start : start + 50]])
        await queue.succeed(claimed, JobResult())
        assert lines(await quick) == published
        assert len(feed._kept) == watching._EVENTS_KEPT
        seen += [event async for event in slow]

    assert lines(seen) == published
    assert seen[-1].event == StateChange(JobState.SUCCEEDED, 1)


async def test_an_event_of_another_version_is_passed_over(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    (claimed,) = await running_jobs(queue, 1)
    watched = asyncio.create_task(events(queue, claimed.job.job_id))
    async with asyncio.timeout(60):
        await all_wait(queue, 1)
        for fields in ({"type": "dream", "data": "{}"}, {"type": "log", "data": "no JSON"}, {"other": "x"}):
            await server.xadd(keys.events(claimed.job.job_id), fields)
        await queue.publish(claimed, [LogLine("after")])
        await queue.succeed(claimed, JobResult())
        live = await watched

    assert lines(live) == ["after"]
    assert await events(queue, claimed.job.job_id) == live


async def test_a_watch_beyond_the_end_of_the_stream_ends_with_the_job(
    queue: RedisJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a server that lost its last events, or whose clock was set back: newer events have older names."""
    monkeypatch.setattr(watching, "_LOOK_AGAIN_S", 0.05)
    (claimed,) = await running_jobs(queue, 1)
    ahead = asyncio.create_task(events(queue, claimed.job.job_id, cursor="9999999999999-0"))
    async with asyncio.timeout(60):
        await all_wait(queue, 1)
        beside = asyncio.create_task(events(queue, claimed.job.job_id))
        await all_wait(queue, 2)
        await queue.publish(claimed, [LogLine("line")])
        await queue.succeed(claimed, JobResult())

        assert await ahead == []
        assert lines(await beside) == ["line"]


async def test_the_end_of_the_queue_ends_all_watches(queue: RedisJobQueue) -> None:
    (claimed,) = await running_jobs(queue, 1)
    watched = [asyncio.create_task(events(queue, claimed.job.job_id)) for _ in range(3)]
    async with asyncio.timeout(60):
        await all_wait(queue, 3)
        await queue.close()
        ended = await asyncio.gather(*watched, return_exceptions=True)

    assert [type(each) for each in ended] == [UnavailableError] * 3


async def test_a_watch_that_is_broken_off_leaves_nothing(queue: RedisJobQueue) -> None:
    (claimed,) = await running_jobs(queue, 1)

    async def watch() -> None:
        await events(queue, claimed.job.job_id)

    watching_tasks = [asyncio.create_task(watch()) for _ in range(3)]
    async with asyncio.timeout(60):
        await all_wait(queue, 3)
        for task in watching_tasks:
            task.cancel()
        await asyncio.wait(watching_tasks)
        while queue._watches._feeds._reading is not None:
            await asyncio.sleep(0.01)

    assert queue._watches._feeds._feeds == {}
