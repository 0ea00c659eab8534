"""Attempts: cancelled, crashed, given back, overtaken; nothing of a stale one counts."""

import asyncio

import pytest
from redis.asyncio import Redis

from madpo.errors import StaleAttemptError
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import CheckpointPublished, Job, JobResult, JobState, LogLine
from tests.contract.queue.jobs import QUEUE, claim, end_pause, reap, request


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
async def test_a_job_whose_cancellation_was_asked_for_never_runs_again(queue: RedisJobQueue, how: str) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    await queue.cancel(claimed.job.job_id)
    if how == "lease ran out":
        (ended,) = await reap(queue, claimed.job.job_id)
    else:
        ended = await queue.give_back(claimed, reason="boom" if how == "crashed" else None)
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
        queue.give_back(claimed, reason="late"),
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
            lambda claimed: queue.give_back(claimed, reason="boom"),
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
        assert (await queue.give_back(await claim(queue), reason="boom")).state == JobState.PENDING
    last = await queue.give_back(await claim(queue), reason="out of memory\nline 1\nline 2")
    assert (last.state, last.attempt) == (JobState.FAILED, 3)
    assert last.reason == "out of memory; tried 3 times without progress\nline 1\nline 2"
    ((_, letter),) = await server.xrange(keys.dead(QUEUE))
    assert letter == {"job_id": job.job_id, "attempt": "3", "reason": last.reason}


async def test_the_same_fingerprint_twice_in_a_row_is_not_tried_a_third_time(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=9))
    for fingerprint in ("a", "b", "", "a", ""):
        given_back = await queue.give_back(await claim(queue), reason="boom", fingerprint=fingerprint)
        assert given_back.state == JobState.PENDING
    for _ in range(3):
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(1)])
        assert (await queue.give_back(claimed, reason="boom", fingerprint="a")).state == JobState.PENDING
    last = await queue.give_back(await claim(queue), reason="boom", fingerprint="a")
    assert (last.state, last.reason) == (JobState.FAILED, "boom; tried 2 times without progress")


async def test_a_job_of_one_attempt_is_tried_once(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=1))
    last = await queue.give_back(await claim(queue), reason="boom")
    assert (last.state, last.reason) == (JobState.FAILED, "boom; tried once")


async def test_a_checkpoint_clears_the_crash_count_and_a_drain_does_not_add_to_it(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=2))
    for _ in range(3):
        await queue.give_back(await claim(queue), reason=None)
        await queue.give_back(await claim(queue), reason="boom")
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(1)])
        assert (await queue.give_back(claimed, reason="boom")).state == JobState.PENDING
        claimed = await claim(queue)
        await queue.publish(claimed, [CheckpointPublished(2)])
        await queue.give_back(claimed, reason=None)


async def test_a_job_that_is_given_back_keeps_its_place(queue: RedisJobQueue) -> None:
    first = await queue.create(request("first"))
    await queue.create(request("second"))
    await queue.give_back(await claim(queue), reason=None)
    assert (await claim(queue)).job.job_id == first.job_id


@pytest.mark.promise("J3")
async def test_only_leases_that_were_not_renewed_since_they_were_seen_are_reaped(queue: RedisJobQueue) -> None:
    for name in ("dead", "alive", "over"):
        await queue.create(request(name, max_attempts=1))
    dead, alive, over = await claim(queue, "one"), await claim(queue, "two"), await claim(queue, "three")
    seen = (await queue.leases()).held
    assert {lease.job_id: lease.length_s for lease in seen} == {
        claimed.job.job_id: 60.0 for claimed in (dead, alive, over)
    }
    await queue.renew(alive)
    await queue.succeed(over, JobResult())

    (reaped,) = await queue.reap(seen)

    assert (reaped.job_id, reaped.state) == (dead.job.job_id, JobState.PENDING)
    assert reaped.reason == "worker one stopped renewing its lease"
    assert (await queue.get(alive.job.job_id)).state == JobState.RUNNING
    assert await queue.reap(seen) == []


async def test_a_lease_that_ran_out_can_be_renewed_until_somebody_takes_the_job(queue: RedisJobQueue) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    ran_out = (await queue.leases()).held
    await queue.renew(claimed)
    assert await queue.reap(ran_out) == []
    await reap(queue, claimed.job.job_id)
    with pytest.raises(StaleAttemptError):
        await queue.renew(claimed)


@pytest.mark.promise("J4")
async def test_nothing_of_a_stale_attempt_is_accepted(queue: RedisJobQueue) -> None:
    await queue.create(request("r", max_attempts=1000))
    stale = await claim(queue, "paused")
    accepted = []
    for _ in range(50):
        await reap(queue, stale.job.job_id)
        owner = await claim(queue, "paused")
        calls = [
            queue.renew(stale),
            queue.publish(stale, [CheckpointPublished(1)]),
            queue.succeed(stale, JobResult("model-stale")),
            queue.give_back(stale),
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        accepted += [answer for answer in answers if not isinstance(answer, StaleAttemptError)]
        await queue.publish(owner, [CheckpointPublished(1)])  # progress: it never pauses
        stale = owner
    assert accepted == []


async def test_what_comes_from_outside_spends_no_attempt_and_makes_the_job_pause_longer_each_time(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r", max_attempts=1))
    other = await queue.create(request("other"))
    reasons = []
    for interruption in range(1, 9):
        claimed = await claim(queue)
        assert claimed.job.job_id == job.job_id
        if interruption % 2:
            given_back = await queue.give_back(claimed, reason="killed\nlast line", from_outside=True)
        else:
            (given_back,) = await reap(queue, job.job_id)
        assert given_back.state == JobState.PENDING
        reasons.append(given_back.reason.splitlines()[0])
        if interruption > 1:
            meanwhile = await claim(queue)
            assert meanwhile.job.job_id == other.job_id  # a pause holds up nobody
            await queue.give_back(meanwhile)
            await end_pause(server, keys, job.job_id)

    assert reasons[0] == "killed"
    pauses = [reason.rpartition("; the next attempt begins in ")[2] for reason in reasons[1:]]
    assert pauses == ["5 s", "10 s", "20 s", "40 s", "80 s", "160 s", "300 s"]
    assert given_back.reason == "worker worker stopped renewing its lease; the next attempt begins in 300 s"
    last = await queue.give_back(await claim(queue), reason="boom")
    assert (last.state, last.reason) == (JobState.FAILED, "boom; tried once")


@pytest.mark.promise("J5")
async def test_a_job_that_is_interrupted_again_and_again_ends_unless_it_gets_on(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r"))

    async def interrupt() -> Job:
        await end_pause(server, keys, job.job_id)
        return await queue.give_back(await claim(queue), reason="killed\nlast line", from_outside=True)

    for _ in range(19):
        assert (await interrupt()).state == JobState.PENDING
    await end_pause(server, keys, job.job_id)
    claimed = await claim(queue)
    await queue.publish(claimed, [CheckpointPublished(1)])
    await queue.give_back(claimed)
    for _ in range(19):
        assert (await interrupt()).state == JobState.PENDING

    last = await interrupt()

    assert (last.state, last.reason) == (JobState.FAILED, "killed; interrupted 20 times without progress\nlast line")
    ((_, letter),) = await server.xrange(keys.dead(QUEUE))
    assert letter["reason"] == last.reason


async def test_a_pause_that_the_servers_clock_has_made_longer_is_over(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r"))
    for _ in range(2):
        await queue.give_back(await claim(queue), reason="killed", from_outside=True)
    assert await queue.claim(QUEUE, "worker", timeout_s=0) is None

    # As it looks once the clock was set back by an hour.
    await server.hincrby(keys.job(job.job_id), "not_before_ms", 3_600_000)

    assert (await claim(queue)).job.job_id == job.job_id
