"""What workers say that they can do is known while they live, and a job goes to one that can do it."""

import asyncio

from redis.asyncio import Redis

from madpo.ports import JobRequest
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.types import JobKind, JobState


async def test_live_workers_are_told_apart_and_queues_too(queue: RedisJobQueue) -> None:
    assert await queue.announced("evaluate") == ()

    await queue.announce("evaluate", "a", ["words", "bleu"])
    await queue.announce("evaluate", "b", ["words", "vader"])
    await queue.announce("train", "c", [])
    await queue.announce("evaluate", "a", ["bleu"])

    assert set(await queue.announced("evaluate")) == {frozenset({"bleu"}), frozenset({"words", "vader"})}
    assert await queue.announced("train") == (frozenset(),)


async def test_a_worker_that_is_silent_for_a_lease_is_forgotten(
    queue: RedisJobQueue, server: Redis, each_redis_url: str, redis_namespace: str, keys: Keys
) -> None:
    hasty = connect(each_redis_url, namespace=redis_namespace, lease_s=0.001)
    await hasty.announce("evaluate", "gone", ["bleu"])
    while await hasty.announced("evaluate"):
        await asyncio.sleep(0.001)
    await hasty.close()

    await queue.announce("evaluate", "here", ["words"])

    assert await queue.announced("evaluate") == (frozenset({"words"}),)
    assert await server.hkeys(keys.announced("evaluate")) == ["here"]


async def test_the_short_life_of_one_does_not_end_that_of_others(
    queue: RedisJobQueue, each_redis_url: str, redis_namespace: str
) -> None:
    hasty = connect(each_redis_url, namespace=redis_namespace, lease_s=0.001)
    await queue.announce("evaluate", "here", ["words"])
    await hasty.announce("evaluate", "gone", ["bleu"])
    while any("bleu" in known for known in await hasty.announced("evaluate")):
        await asyncio.sleep(0.001)
    await hasty.close()

    assert await queue.announced("evaluate") == (frozenset({"words"}),)


def measured(name: str, *metrics: str) -> JobRequest:
    return JobRequest(name, JobKind.EVALUATION, {"name": name, "metrics": list(metrics)})


async def test_a_job_goes_to_a_worker_that_can_do_all_of_it(queue: RedisJobQueue) -> None:
    both, one, none = [await queue.create(measured(each, *each)) for each in ("ab", "a", "")]

    async def claimed(*abilities: str) -> str | None:
        claim = await queue.claim("evaluate", f"worker {abilities}", timeout_s=0, abilities=abilities)
        return claim and claim.job.job_id

    assert await claimed() == none.job_id
    assert await claimed() is None
    assert await claimed("b") is None
    assert await claimed("c", "a") == one.job_id
    assert await claimed("a") is None
    assert await claimed("a", "b", "c") == both.job_id


async def test_any_number_of_jobs_for_others_are_passed_by(queue: RedisJobQueue) -> None:
    for number in range(230):
        await queue.create(measured(f"other-{number}", "new"))
    job = await queue.create(measured("ours"))
    claim = await queue.claim("evaluate", "worker", timeout_s=0)
    assert claim is not None
    assert claim.job.job_id == job.job_id
    assert (await queue.status("evaluate")).pending == 230


async def test_a_restored_job_needs_what_it_needed(queue: RedisJobQueue) -> None:
    await queue.restore(measured("r", "new"), job_id=job_id_of("r"), state=JobState.RUNNING)
    assert await queue.claim("evaluate", "old", timeout_s=0, abilities=["words"]) is None
    assert await queue.claim("evaluate", "new", timeout_s=0, abilities=["words", "new"]) is not None


async def test_who_waits_for_a_job_it_can_do_is_not_kept_by_others(queue: RedisJobQueue) -> None:
    waiting = asyncio.create_task(queue.claim("evaluate", "old", timeout_s=60))
    await asyncio.sleep(0)
    await queue.create(measured("new", "new"))
    job = await queue.create(measured("plain"))
    claim = await asyncio.wait_for(waiting, 30)
    assert claim is not None
    assert claim.job.job_id == job.job_id
