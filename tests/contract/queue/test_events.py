"""Events of jobs: watched in order, from any cursor, without gap or repeat."""

import asyncio
import contextlib
from typing import Any

import pytest
from redis.asyncio import Redis

from madpo.errors import InvalidArgumentError
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import CheckpointPublished, JobEvent, JobProgress, JobResult, JobState, LogLine, StateChange
from tests.contract.queue.jobs import claim, events, request, states


async def test_events_are_watched_in_order_and_progress_shows_in_the_job(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    progress = JobProgress(3, 10, {"loss": 0.5}, remaining_s=7.0, phase="training")
    await queue.publish(claimed, [LogLine("hello é"), progress])
    await queue.publish(claimed, [CheckpointPublished(3)])
    result = JobResult("model-1", {"accuracy": 0.75})
    ended = await queue.succeed(claimed, result)
    assert (ended.state, ended.result, ended.progress) == (JobState.SUCCEEDED, result, progress)
    assert [event.event for event in await events(queue, job.job_id)] == [
        StateChange(JobState.PENDING, 0),
        StateChange(JobState.RUNNING, 1),
        LogLine("hello é"),
        progress,
        CheckpointPublished(3),
        StateChange(JobState.SUCCEEDED, 1),
    ]


async def test_a_watch_resumes_after_any_cursor_without_gap_or_repeat(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    await queue.publish(claimed, [LogLine(str(i)) for i in range(20)])
    await queue.fail(claimed, "boom")
    whole = await events(queue, job.job_id)
    assert len(whole) == 23
    for position, event in enumerate(whole):
        assert await events(queue, job.job_id, cursor=event.cursor) == whole[position + 1 :]


async def test_what_is_past_is_given_while_the_job_goes_on(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    claimed = await claim(queue)
    await queue.publish(claimed, [LogLine(str(i)) for i in range(20)])

    past = [event async for event in queue.watch(job.job_id, past_only=True)]

    assert [event.event for event in past[2:]] == [LogLine(str(i)) for i in range(20)]
    assert [event async for event in queue.watch(job.job_id, cursor=past[-1].cursor, past_only=True)] == []
    await queue.succeed(claimed, JobResult())
    assert len([event async for event in queue.watch(job.job_id, past_only=True)]) == len(past) + 1


@pytest.mark.promise("J7")
async def test_a_live_watch_broken_off_again_and_again_misses_nothing(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    claimed = await claim(queue)

    async def publish() -> None:
        for i in range(60):
            await queue.publish(claimed, [LogLine(str(i))])
        await queue.succeed(claimed, JobResult())

    publishing = asyncio.create_task(publish())
    seen: list[JobEvent] = []
    async with asyncio.timeout(60):
        while not seen or states(seen)[-1] != JobState.SUCCEEDED:
            async with contextlib.aclosing(queue.watch(job.job_id, cursor=seen[-1].cursor if seen else "")) as watch:
                for _ in range(7):
                    if (event := await anext(watch, None)) is None:
                        break
                    seen.append(event)
    await publishing
    assert [event.event.line for event in seen if isinstance(event.event, LogLine)] == [str(i) for i in range(60)]
    assert states(seen) == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]


async def test_a_watch_ends_though_the_client_swallowed_its_cancellation(
    queue: RedisJobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await queue.create(request("watched"))
    answer = queue._answer

    async def deaf(call: Any) -> Any:
        try:
            return await answer(call)
        except asyncio.CancelledError:
            return []

    monkeypatch.setattr(queue, "_answer", deaf)
    seen = asyncio.Event()

    async def watch() -> None:
        async for _ in queue.watch(job.job_id):
            seen.set()

    watching = asyncio.create_task(watch())
    await seen.wait()
    await asyncio.sleep(0)  # the watch now waits for more
    watching.cancel()
    await asyncio.wait({watching}, timeout=30)

    assert watching.cancelled()


async def test_a_watch_of_a_finished_job_ends_though_its_events_are_gone(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r"))
    await queue.fail(await claim(queue), "boom")
    whole = await events(queue, job.job_id)
    await server.delete(keys.events(job.job_id))
    (final,) = await events(queue, job.job_id)
    assert final.event == StateChange(JobState.FAILED, 1, "boom")
    assert final.cursor == whole[-1].cursor
    assert await events(queue, job.job_id, cursor=final.cursor) == []


@pytest.mark.parametrize("cursor", ["0", "$", "1-2-3", "-", "1-x", "9" * 30 + "-0", f"{2**64}-0", f"0-{2**64}"])
async def test_a_foreign_cursor_is_refused(queue: RedisJobQueue, cursor: str) -> None:
    job = await queue.create(request("r"))
    with pytest.raises(InvalidArgumentError, match="cursor"):
        await events(queue, job.job_id, cursor=cursor)
