"""Attempts: cancelled, crashed, given back, overtaken; nothing of a stale one counts."""

import asyncio

import pytest
from redis.asyncio import Redis

from madpo.errors import StaleAttemptError
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import CheckpointPublished, JobResult, JobState, LogLine
from tests.contract.queue.jobs import QUEUE, claim, expire_lease, request


async def test_a_job_that_has_not_started_is_cancelled_at_once(queue: RedisJobQueue) -> None:
    pending = await queue.create(request("pending"))
    waiting = await queue.create(request("waiting", depends_on=(pending.job_id,)))
    for job in (waiting, pending):
        cancelled = await queue.cancel(job.job_id)
        assert (cancelled.state, cancelled.reason) == (JobState.CANCELLED, "cancelled on request")
        assert await queue.cancel(job.job_id) == cancelled
    assert await queue.claim(QUEUE, "worker", timeout_s=0) is None


async def test_a_running_job_is_asked_to_stop_and_then_ends_as_cancelled(queue: RedisJobQueue) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    assert not (await queue.renew(claimed)).cancel_requested
    asked = await queue.cancel(claimed.job.job_id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert (await queue.renew(claimed)).cancel_requested
    assert (await queue.finish_cancelled(claimed)).state == JobState.CANCELLED


@pytest.mark.promise("J6")
@pytest.mark.parametrize("how", ["lease ran out", "crashed", "drained"])
async def test_a_job_whose_cancellation_was_asked_for_never_runs_again(
    queue: RedisJobQueue, server: Redis, keys: Keys, how: str
) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    await queue.cancel(claimed.job.job_id)
    if how == "lease ran out":
        await expire_lease(server, keys, claimed.job.job_id)
        (ended,) = await queue.reap()
    else:
        ended = await queue.give_back(claimed, crash_reason="boom" if how == "crashed" else None)
    assert ended.state == JobState.CANCELLED
    assert await queue.claim(QUEUE, "worker", timeout_s=0) is None


async def test_terminal_jobs_stay_as_they_are(queue: RedisJobQueue) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    ended = await queue.succeed(claimed, JobResult("model-1"))
    assert await queue.cancel(ended.job_id) == ended
    for call in (
        queue.renew(claimed),
        queue.publish(claimed, [LogLine("late")]),
        queue.fail(claimed, "late"),
        queue.finish_cancelled(claimed),
        queue.give_back(claimed, crash_reason="late"),
    ):
        with pytest.raises(StaleAttemptError, match="SUCCEEDED"):
            await call
    assert await queue.get(ended.job_id) == ended


async def test_endings_may_be_repeated(queue: RedisJobQueue) -> None:
    ended = []
    for i, call in enumerate(
        (
            lambda claimed: queue.succeed(claimed, JobResult("model-1")),
            lambda claimed: queue.fail(claimed, "boom"),
            lambda claimed: queue.finish_cancelled(claimed),
            lambda claimed: queue.give_back(claimed, crash_reason="boom"),
        )
    ):
        await queue.create(request(f"r{i}"))
        claimed = await claim(queue)
        first = await call(claimed)
        assert await call(claimed) == first
        ended.append(first.state)
    assert ended == [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PENDING]
    assert (await queue.status(QUEUE)).pending == 1


@pytest.mark.promise("J5")
async def test_crashes_without_progress_end_a_job_as_a_dead_letter(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r"))
    for _ in range(2):
        assert (await queue.give_back(await claim(queue), crash_reason="boom")).state == JobState.PENDING
    last = await queue.give_back(await claim(queue), crash_reason="out of memory\nline 1\nline 2")
    assert (last.state, last.attempt) == (JobState.FAILED, 3)
    assert last.reason == "out of memory; tried 3 times without progress\nline 1\nline 2"
    ((_, letter),) = await server.xrange(keys.dead(QUEUE))
    assert letter == {"job_id": job.job_id, "attempt": "3", "reason": last.reason}


async def test_the_same_fingerprint_twice_in_a_row_is_not_tried_a_third_time(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=9))
    for fingerprint in ("a", "b", "", "a", ""):
        given_back = await queue.give_back(await claim(queue), crash_reason="boom", crash_fingerprint=fingerprint)
        assert given_back.state == JobState.PENDING
    for _ in range(3):
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(1)])
        assert (await queue.give_back(claimed, crash_reason="boom", crash_fingerprint="a")).state == JobState.PENDING
    last = await queue.give_back(await claim(queue), crash_reason="boom", crash_fingerprint="a")
    assert (last.state, last.reason) == (JobState.FAILED, "boom; tried 2 times without progress")


async def test_a_job_of_one_attempt_is_tried_once(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=1))
    last = await queue.give_back(await claim(queue), crash_reason="boom")
    assert (last.state, last.reason) == (JobState.FAILED, "boom; tried once")


async def test_a_checkpoint_clears_the_crash_count_and_a_drain_does_not_add_to_it(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=2))
    for _ in range(3):
        await queue.give_back(await claim(queue), crash_reason=None)
        await queue.give_back(await claim(queue), crash_reason="boom")
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(1)])
        assert (await queue.give_back(claimed, crash_reason="boom")).state == JobState.PENDING
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(2)])
        await queue.give_back(claimed, crash_reason=None)


async def test_a_job_that_is_given_back_keeps_its_place(queue: RedisJobQueue) -> None:
    first = await queue.create(request("first"))
    await queue.create(request("second"))
    await queue.give_back(await claim(queue), crash_reason=None)
    assert (await claim(queue)).job.job_id == first.job_id


@pytest.mark.promise("J3")
async def test_only_leases_that_ran_out_are_reaped_and_that_counts_as_a_crash(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    await queue.create(request("dead", max_attempts=1))
    await queue.create(request("silent"))
    await queue.create(request("alive"))
    dead, silent, alive = await claim(queue, "one"), await claim(queue, "two"), await claim(queue, "three")
    assert await queue.reap() == []
    for claimed in (dead, silent):
        await expire_lease(server, keys, claimed.job.job_id)
    reaped = {job.job_id: job for job in await queue.reap()}
    assert {job_id: job.state for job_id, job in reaped.items()} == {
        dead.job.job_id: JobState.FAILED,
        silent.job.job_id: JobState.PENDING,
    }
    assert "worker one stopped renewing its lease" in reaped[dead.job.job_id].reason
    assert (await queue.get(alive.job.job_id)).state == JobState.RUNNING
    assert await queue.reap() == []


async def test_a_lease_that_ran_out_can_be_renewed_until_somebody_takes_the_job(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    await expire_lease(server, keys, claimed.job.job_id)
    await queue.renew(claimed)
    assert await queue.reap() == []
    await expire_lease(server, keys, claimed.job.job_id)
    await queue.reap()
    with pytest.raises(StaleAttemptError):
        await queue.renew(claimed)


@pytest.mark.promise("J4")
async def test_nothing_of_a_stale_attempt_is_accepted(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    await queue.create(request("r", max_attempts=1000))
    stale = await claim(queue, "paused")
    accepted = []
    for _ in range(50):
        await expire_lease(server, keys, stale.job.job_id)
        await queue.reap()
        owner = await claim(queue, "paused")
        calls = [
            queue.renew(stale),
            queue.publish(stale, [CheckpointPublished(1)]),
            queue.succeed(stale, JobResult("model-stale")),
            queue.give_back(stale, crash_reason=None),
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        accepted += [answer for answer in answers if not isinstance(answer, StaleAttemptError)]
        await queue.renew(owner)
        stale = owner
    assert accepted == []
