"""Jobs that are taken up again, and jobs that are removed."""

import asyncio

import pytest
from redis.asyncio import Redis

from madpo.errors import FailedPreconditionError, NotFoundError, StaleAttemptError
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import CheckpointPublished, JobResult, JobState, LogLine
from tests.contract.queue.jobs import QUEUE, claim, events, request, states


async def test_a_resumed_job_goes_on_as_itself(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    job = await queue.create(request("r"))
    first = await claim(queue)
    await queue.publish(first, [CheckpointPublished(1), LogLine("before")])
    await queue.cancel(job.job_id)
    ended = await queue.finish_cancelled(first)
    assert await server.ttl(keys.events(job.job_id)) > 0

    resumed = await queue.resume(job.job_id, resumes=ended.resumes)
    again = await claim(queue)
    await queue.succeed(again, JobResult("model-1"))

    assert (resumed.state, resumed.attempt, resumed.resumes) == (JobState.PENDING, 1, 1)
    assert (resumed.cancel_requested, resumed.finish_time) == (False, None)
    assert (again.job.job_id, again.attempt) == (job.job_id, 2)
    assert states(await events(queue, job.job_id)) == [
        JobState.PENDING,
        JobState.RUNNING,
        JobState.CANCELLED,
        JobState.PENDING,
        JobState.RUNNING,
        JobState.SUCCEEDED,
    ]


async def test_a_resumed_job_may_crash_as_often_as_a_new_one(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r", max_attempts=2))
    for _ in range(2):
        ended = await queue.give_back(await claim(queue), reason="boom")
    assert ended.state is JobState.FAILED
    await queue.resume(job.job_id, resumes=0)
    assert (await queue.give_back(await claim(queue), reason="boom")).state is JobState.PENDING
    ended = await queue.give_back(await claim(queue), reason="boom")
    assert (ended.state, ended.attempt) == (JobState.FAILED, 4)


async def test_a_resumed_job_may_crash_once_more_as_it_did_before(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    for _ in range(2):
        ended = await queue.give_back(await claim(queue), reason="boom", fingerprint="a")
    assert ended.state is JobState.FAILED
    await queue.resume(job.job_id, resumes=0)
    again = await queue.give_back(await claim(queue), reason="boom", fingerprint="a")
    assert again.state is JobState.PENDING


async def test_a_watch_that_has_seen_the_end_goes_on_once_the_job_is_resumed(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    await queue.fail(await claim(queue), "boom")
    seen = await events(queue, job.job_id)
    await queue.resume(job.job_id, resumes=0)
    await queue.succeed(await claim(queue), JobResult())
    rest = await events(queue, job.job_id, cursor=seen[-1].cursor)
    assert states(seen)[-1] is JobState.FAILED
    assert states(rest) == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]


async def test_nothing_of_the_attempt_before_counts_for_a_resumed_job(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    stale = await claim(queue)
    await queue.fail(stale, "boom")
    await queue.resume(job.job_id, resumes=0)

    async def refuses_all() -> None:
        for call in (
            queue.renew(stale),
            queue.publish(stale, [CheckpointPublished(9)]),
            queue.succeed(stale, JobResult("model-stale")),
            queue.fail(stale, "boom"),
        ):
            with pytest.raises(StaleAttemptError):
                await call

    await refuses_all()
    owner = await claim(queue, "another")
    await refuses_all()
    await queue.renew(owner)


async def test_what_needs_a_job_that_failed_is_resumed_after_it(queue: RedisJobQueue) -> None:
    root = await queue.create(request("root"))
    child = await queue.create(request("child", depends_on=(root.job_id,)))
    await queue.fail(await claim(queue), "boom")

    with pytest.raises(FailedPreconditionError, match=f"needs {root.job_id}, which is FAILED: resume that one first"):
        await queue.resume(child.job_id, resumes=0)
    await queue.resume(root.job_id, resumes=0)
    assert (await queue.resume(child.job_id, resumes=0)).state is JobState.WAITING
    await queue.succeed(await claim(queue), JobResult())
    assert (await claim(queue)).job.job_id == child.job_id


async def test_a_job_that_succeeded_or_is_not_over_is_not_resumed(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    with pytest.raises(FailedPreconditionError, match="is PENDING: only a failed or cancelled job can be resumed"):
        await queue.resume(job.job_id, resumes=0)
    await queue.succeed(await claim(queue), JobResult())
    with pytest.raises(FailedPreconditionError, match="has succeeded, so nothing of it is left to do"):
        await queue.resume(job.job_id, resumes=0)
    with pytest.raises(NotFoundError):
        await queue.resume("job-" + "0" * 32, resumes=0)


@pytest.mark.parametrize("round_", range(20))
async def test_a_resumption_asked_for_many_times_at_once_happens_once(queue: RedisJobQueue, round_: int) -> None:
    job = await queue.create(request(f"r{round_}"))
    await queue.fail(await claim(queue), "boom")
    claims = [asyncio.create_task(queue.claim(QUEUE, f"worker {number}", timeout_s=60)) for number in range(2)]
    resumed = await asyncio.gather(*(queue.resume(job.job_id, resumes=0) for _ in range(4)))
    assert {each.resumes for each in resumed} == {1}
    await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
    after = await queue.create(request(f"after r{round_}"))  # who did not get it goes on to what comes after it
    taken = {each.job.job_id: each for each in await asyncio.gather(*claims) if each is not None}
    assert {job_id: each.attempt for job_id, each in taken.items()} == {job.job_id: 2, after.job_id: 1}
    # One that was sent long ago and arrives after the next end changes nothing either.
    await queue.fail(taken[job.job_id], "boom again")
    assert (await queue.resume(job.job_id, resumes=0)).state is JobState.FAILED


async def test_a_deleted_job_is_gone_whole(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    job = await queue.create(request("r"))
    await queue.fail(await claim(queue), "boom")
    assert (await queue.retire(job.job_id)).state is JobState.FAILED
    assert (await queue.retire(job.job_id)).state is JobState.FAILED  # broken off, it is begun again
    with pytest.raises(NotFoundError):
        await queue.resume(job.job_id, resumes=0)
    await queue.forget(job.job_id)
    await queue.forget(job.job_id)
    with pytest.raises(NotFoundError):
        await queue.get(job.job_id)
    assert await queue.list(page_size=10) == ([], "")
    assert await server.keys(f"{keys.job(job.job_id)}*") == []


async def test_a_job_is_not_deleted_while_it_runs_or_is_needed(queue: RedisJobQueue) -> None:
    root = await queue.create(request("root"))
    child = await queue.create(request("child", depends_on=(root.job_id,)))
    with pytest.raises(FailedPreconditionError, match="is PENDING: cancel it, and wait for its end"):
        await queue.retire(root.job_id)
    await queue.succeed(await claim(queue), JobResult())
    with pytest.raises(FailedPreconditionError, match=f"is used by {child.job_id}, which is PENDING"):
        await queue.retire(root.job_id)
    claimed = await claim(queue)
    with pytest.raises(FailedPreconditionError, match=f"is used by {child.job_id}, which is RUNNING"):
        await queue.retire(root.job_id)
    await queue.fail(claimed, "boom")
    await queue.retire(root.job_id)
    await queue.forget(root.job_id)
    with pytest.raises(FailedPreconditionError, match=f"needs {root.job_id}, which was deleted"):
        await queue.resume(child.job_id, resumes=0)


@pytest.mark.parametrize("round_", range(20))
async def test_of_a_resumption_and_a_deletion_at_once_one_wins(queue: RedisJobQueue, round_: int) -> None:
    job = await queue.create(request(f"r{round_}"))
    await queue.fail(await claim(queue), "boom")
    calls = [queue.resume(job.job_id, resumes=0), queue.retire(job.job_id)]
    resumed, retired = await asyncio.gather(*(calls if round_ % 2 else calls[::-1]), return_exceptions=True)
    if not round_ % 2:
        resumed, retired = retired, resumed
    assert isinstance(resumed, NotFoundError) != isinstance(retired, FailedPreconditionError)
    claimed = await queue.claim(QUEUE, "worker", timeout_s=0)
    assert (claimed is None) == isinstance(resumed, NotFoundError)


async def test_a_retired_job_cannot_be_waited_for(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    await queue.succeed(await claim(queue), JobResult())
    await queue.retire(job.job_id)
    with pytest.raises(NotFoundError, match=job.job_id):
        await queue.create(request("next", depends_on=(job.job_id,)))


async def test_a_retired_job_is_known_by_a_mark_until_it_is_gone_or_reinstated(queue: RedisJobQueue) -> None:
    jobs = [await queue.create(request(name)) for name in ("one", "other")]
    for job in jobs:
        await queue.fail(await claim(queue), "boom")
        await queue.retire(job.job_id)
    one, other = (job.job_id for job in jobs)
    marks = await queue.retired()
    assert marks.keys() == {one, other}
    await queue.retire(one)
    again = await queue.retired()
    assert again[one] != marks[one]
    assert again[other] == marks[other]
    await queue.reinstate(one)
    await queue.forget(other)
    assert await queue.retired() == {}


async def test_a_retired_job_is_neither_found_nor_listed_until_it_is_reinstated(queue: RedisJobQueue) -> None:
    job = await queue.create(request("r"))
    await queue.fail(await claim(queue), "boom")
    await queue.retire(job.job_id)
    with pytest.raises(NotFoundError, match=job.job_id):
        await queue.get(job.job_id)
    assert await queue.list(page_size=10) == ([], "")
    assert [each.job_id async for each in queue.scan()] == [job.job_id]
    for _ in range(2):
        await queue.reinstate(job.job_id)
    await queue.forget(job.job_id)  # not retired any more: nothing happens
    assert (await queue.get(job.job_id)).state is JobState.FAILED
    assert (await queue.resume(job.job_id, resumes=0)).state is JobState.PENDING
    await queue.reinstate("job-" + "0" * 32)
    assert [each.job_id async for each in queue.scan()] == [job.job_id]
