"""Jobs that wait for others, and fall with them."""

import pytest

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.queue.queue import RedisJobQueue, job_id_of
from madpo.types import JobResult, JobState
from tests.contract.queue.jobs import claim, events, first_events, request, states


async def test_a_job_waits_for_all_its_dependencies(queue: RedisJobQueue) -> None:
    one, two = await queue.create(request("one")), await queue.create(request("two"))
    last = await queue.create(request("last", depends_on=(one.job_id, two.job_id, one.job_id)))
    assert (last.state, last.depends_on) == (JobState.WAITING, (one.job_id, two.job_id))
    await queue.succeed(await claim(queue), JobResult())
    assert (await queue.get(last.job_id)).state == JobState.WAITING
    await queue.succeed(await claim(queue), JobResult())
    assert (await claim(queue)).job.job_id == last.job_id
    assert states(await first_events(queue, last.job_id, count=3)) == [
        JobState.WAITING,
        JobState.PENDING,
        JobState.RUNNING,
    ]


async def test_a_failure_fails_everything_that_waits_for_it_and_names_the_cause(queue: RedisJobQueue) -> None:
    root = await queue.create(request("root"))
    other = await queue.create(request("other"))
    child = await queue.create(request("child", depends_on=(root.job_id, other.job_id)))
    grandchild = await queue.create(request("grandchild", depends_on=(child.job_id,)))
    await queue.fail(await claim(queue), "boom")
    for job_id in (child.job_id, grandchild.job_id):
        job = await queue.get(job_id)
        assert (job.state, job.reason) == (JobState.FAILED, f"dependency {root.job_id} failed: boom")
        assert states(await events(queue, job_id)) == [JobState.WAITING, JobState.FAILED]
    await queue.succeed(await claim(queue), JobResult())
    assert (await queue.get(child.job_id)).state == JobState.FAILED


async def test_a_job_reached_over_several_failed_dependencies_ends_once(queue: RedisJobQueue) -> None:
    made: list[str] = []
    for i in range(6):
        made.append((await queue.create(request(str(i), depends_on=tuple(made)))).job_id)
    await queue.fail(await claim(queue), "boom")
    for job_id in made[1:]:
        assert states(await events(queue, job_id)) == [JobState.WAITING, JobState.FAILED]


async def test_a_long_chain_of_dependents_falls_at_once(queue: RedisJobQueue) -> None:
    previous = await queue.create(request("0"))
    for i in range(1, 200):
        previous = await queue.create(request(str(i), depends_on=(previous.job_id,)))
    await queue.cancel(job_id_of("0"))
    assert (await queue.get(previous.job_id)).reason == f"dependency {job_id_of('0')} was cancelled"


async def test_dependencies_must_exist_and_be_able_to_succeed(queue: RedisJobQueue) -> None:
    with pytest.raises(NotFoundError, match=job_id_of("none")):
        await queue.create(request("r", depends_on=(job_id_of("none"),)))
    done = await queue.create(request("done"))
    await queue.succeed(await claim(queue), JobResult())
    assert (await queue.create(request("r", depends_on=(done.job_id,)))).state == JobState.PENDING
    ended = await queue.cancel((await queue.create(request("ended"))).job_id)
    with pytest.raises(FailedPreconditionError, match=f"{ended.job_id} is CANCELLED"):
        await queue.create(request("s", depends_on=(ended.job_id,)))
    with pytest.raises(NotFoundError):
        await queue.get(job_id_of("s"))
