"""Jobs in a queue: made once, claimed in order, listed; and what the queue asks of its server."""

import asyncio

import pytest
from redis.asyncio import Redis

from madpo.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, MadpoError, NotFoundError
from madpo.ports import JobRequest, QueueStatus
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.types import JobKind, JobResult, JobState
from tests.contract.queue.jobs import QUEUE, claim, events, request, states


async def test_a_created_job_is_pending_and_can_be_read_back(queue: RedisJobQueue) -> None:
    made = await queue.create(
        JobRequest("r", JobKind.POLICY_TRAINING, {"a": [1, None, 0.5, "é"]}, display_name="first try")
    )
    assert made == await queue.get(made.job_id)
    assert (made.state, made.kind, made.attempt) == (JobState.PENDING, JobKind.POLICY_TRAINING, 0)
    assert (made.spec, made.display_name) == ({"a": [1, None, 0.5, "é"]}, "first try")
    assert ((await queue.status("train")).pending, (await queue.status("evaluate")).pending) == (1, 0)


async def test_the_status_of_a_queue_follows_its_jobs_from_waiting_to_the_dead_letters(queue: RedisJobQueue) -> None:
    async def counts() -> tuple[int, int, int, int]:
        status = await queue.status(QUEUE)
        return status.waiting, status.pending, status.running, status.dead_letters

    assert await counts() == (0, 0, 0, 0)
    first = await queue.create(request("first"))
    await queue.create(request("second", depends_on=(first.job_id,)))
    await queue.create(request("third", depends_on=(first.job_id,)))
    assert await counts() == (2, 1, 0, 0)

    await queue.succeed(await claim(queue), JobResult("model-1"))
    assert await counts() == (0, 2, 0, 0)

    for _ in range(3):
        claimed = await claim(queue)
        assert await counts() == (0, 1, 1, 0)
        await queue.give_back(claimed, reason="boom")
    assert await counts() == (0, 1, 0, 1)
    assert await queue.status("train") == QueueStatus(0, 0, 0, 0.0, 0)


async def test_the_status_ends_the_wait_of_a_job_whose_dependency_failed(queue: RedisJobQueue) -> None:
    first = await queue.create(request("first"))
    await queue.create(request("second", depends_on=(first.job_id,)))

    await queue.fail(await claim(queue), "boom")

    assert await queue.status(QUEUE) == QueueStatus(0, 0, 0, 0.0, 0)


async def test_a_job_is_as_old_as_its_wait_for_a_worker(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    first = await queue.create(request("first"))
    second = await queue.create(request("second"))
    assert 0 <= (await queue.status(QUEUE)).oldest_pending_s < 60

    await server.hset(keys.job(second.job_id), "pending_time", f"{second.create_time - 1000:.6f}")
    assert 1000 <= (await queue.status(QUEUE)).oldest_pending_s < 1060

    # Not as old as the job itself: what a worker gives back has waited for none meanwhile.
    await server.hset(keys.job(first.job_id), "pending_time", "0")
    await queue.give_back(await claim(queue), reason=None)
    assert (await queue.status(QUEUE)).oldest_pending_s < 1060


async def test_a_repeated_request_gives_the_same_job_and_another_spec_is_refused(queue: RedisJobQueue) -> None:
    made = await queue.create(request("r"))
    assert await queue.create(request("r")) == made
    assert (await queue.status(QUEUE)).pending == 1
    with pytest.raises(AlreadyExistsError, match="'r' already made job-"):
        await queue.create(JobRequest("r", JobKind.EVALUATION, {"name": "other"}))


async def test_a_repeated_request_is_answered_even_when_its_dependency_has_failed_since(queue: RedisJobQueue) -> None:
    first = await queue.create(request("first"))
    second = await queue.create(request("second", depends_on=(first.job_id,)))
    await queue.fail(await claim(queue), "boom")
    repeated = await queue.create(request("second", depends_on=(first.job_id,)))
    assert (repeated.job_id, repeated.state) == (second.job_id, JobState.FAILED)


async def test_concurrent_repeats_of_a_request_make_one_job(queue: RedisJobQueue) -> None:
    made = await asyncio.gather(*(queue.create(request("r")) for _ in range(20)))
    assert len({job.job_id for job in made}) == 1
    assert (await queue.status(QUEUE)).pending == 1


async def test_jobs_are_claimed_oldest_first_and_each_by_one_worker(queue: RedisJobQueue) -> None:
    made = [(await queue.create(request(f"r{i}"))).job_id for i in range(5)]
    claims = await asyncio.gather(*(queue.claim(QUEUE, f"worker-{i}", timeout_s=0) for i in range(8)))
    taken = [claimed.job.job_id for claimed in claims if claimed]
    assert sorted(taken) == sorted(made)
    assert len(taken) == len(set(taken)) == 5
    again = [await queue.create(request(f"s{i}")) for i in range(3)]
    assert [(await claim(queue)).job.job_id for _ in range(3)] == [job.job_id for job in again]


async def test_a_waiting_claim_is_woken_by_a_new_job(queue: RedisJobQueue) -> None:
    waiting = asyncio.create_task(queue.claim(QUEUE, "worker", timeout_s=60))
    await asyncio.sleep(0.05)
    made = await queue.create(request("r"))
    async with asyncio.timeout(30):
        claimed = await waiting
    assert claimed is not None
    assert claimed.job.job_id == made.job_id


@pytest.mark.promise("J1")
async def test_a_lost_bell_does_not_lose_the_job(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    await queue.create(request("r"))
    await server.delete(keys.bell(QUEUE))
    assert await queue.claim(QUEUE, "worker", timeout_s=0) is not None


async def test_an_empty_queue_gives_nothing(queue: RedisJobQueue) -> None:
    assert await queue.claim(QUEUE, "worker", timeout_s=0.01) is None


async def test_a_claim_raises_the_attempt_and_starts_the_clock(queue: RedisJobQueue) -> None:
    await queue.create(request("r"))
    first = await claim(queue, "one")
    assert (first.attempt, first.job.state, first.worker_id) == (1, JobState.RUNNING, "one")
    await queue.give_back(first, reason=None)
    second = await claim(queue, "two")
    assert (second.attempt, second.job.start_time) == (2, first.job.start_time)


async def test_unknown_jobs_are_not_found(queue: RedisJobQueue) -> None:
    unknown = job_id_of("never made")
    for call in (queue.get(unknown), queue.cancel(unknown), events(queue, unknown)):
        with pytest.raises(NotFoundError, match=unknown):
            await call


async def test_the_list_is_newest_first_and_pages_are_stable_while_jobs_are_made(queue: RedisJobQueue) -> None:
    made = [(await queue.create(request(f"r{i}"))).job_id for i in range(7)]
    listed, token = [], ""
    while True:
        page, token = await queue.list(page_size=3, page_token=token)
        listed += [job.job_id for job in page]
        await queue.create(request(f"later-{len(listed)}"))
        if not token:
            break
    assert listed == made[::-1]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await queue.list(page_size=3, page_token="+inf")
    with pytest.raises(InvalidArgumentError, match="page_size"):
        await queue.list(page_size=0)


async def test_restore_rebuilds_jobs_in_any_order_and_changes_none_that_exist(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    done, next_, lost = (job_id_of(name) for name in ("done", "next", "lost"))
    waits_for_done = request("next", depends_on=(done,))
    result = JobResult("model-1", {"accuracy": 1.0}, warnings=("no plot", "no report"))
    restored = await queue.restore(waits_for_done, job_id=next_, state=JobState.RUNNING, attempt=7, create_time=200.5)
    assert (restored.state, restored.attempt, restored.create_time) == (JobState.WAITING, 7, 200.5)
    over = await queue.restore(request("done"), job_id=done, state=JobState.SUCCEEDED, result=result, create_time=100.0)
    assert (over.state, over.result) == (JobState.SUCCEEDED, result)
    failed = await queue.restore(request("lost"), job_id=lost, state=JobState.FAILED, reason="boom", create_time=300.0)
    assert (failed.state, failed.reason) == (JobState.FAILED, "boom")
    assert await queue.restore(request("done"), job_id=done, state=JobState.FAILED, reason="late") == over

    claimed = await claim(queue)
    assert (claimed.job.job_id, claimed.attempt) == (next_, 8)
    assert await queue.claim(QUEUE, "worker", timeout_s=0) is None
    assert [job.job_id for job in (await queue.list(page_size=9))[0]] == [lost, next_, done]
    assert (await queue.create(request("done"))).job_id == done
    assert states(await events(queue, done))[-1] == JobState.SUCCEEDED
    orphan = await queue.restore(
        request("orphan", depends_on=(lost,)), job_id=job_id_of("orphan"), state=JobState.WAITING
    )
    assert (orphan.state, orphan.reason) == (JobState.FAILED, f"dependency {lost} did not succeed")


async def test_a_job_that_was_set_back_to_its_end_since_it_was_looked_at_can_still_be_resumed(
    queue: RedisJobQueue,
) -> None:
    """It was seen at work after a resumption; then the server came back as it was before."""
    job = await queue.create(request("r"))
    await queue.fail(await claim(queue), "boom")

    restored = await queue.restore(request("r"), job_id=job.job_id, state=JobState.PENDING, resumes=1)
    resumed = await queue.resume(job.job_id, resumes=0)

    assert (restored.state, restored.resumes) == (JobState.FAILED, 0)
    assert (resumed.state, resumed.resumes) == (JobState.PENDING, 1)


async def test_two_namespaces_on_one_server_do_not_meet(queue: RedisJobQueue, each_redis_url: str) -> None:
    await queue.create(request("r"))
    other = connect(each_redis_url, namespace="test-other")
    assert await other.claim(QUEUE, "worker", timeout_s=0) is None
    with pytest.raises(NotFoundError):
        await other.get(job_id_of("r"))
    await other.close()


async def test_every_key_is_of_the_table(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    one = await queue.create(request("one", max_attempts=1))
    await queue.create(request("two", depends_on=(one.job_id,)))
    claimed = await claim(queue)
    before = {key async for key in server.scan_iter(f"{keys.namespace}:*")}
    await queue.give_back(claimed, reason="boom")
    after = {key async for key in server.scan_iter(f"{keys.namespace}:*")}
    known = {keys.jobs, keys.leases, keys.dependents(one.job_id)}
    known |= {keys.bell(QUEUE), keys.dead(QUEUE), keys.waiting(QUEUE)}
    for name in ("one", "two"):
        known |= {keys.job(job_id_of(name)), keys.events(job_id_of(name))}
    tokens = {key for key in before if key.startswith(keys.claim(""))}
    assert before | after == known | tokens
    assert len(tokens) == 1
    assert keys.dependents(one.job_id) not in after
    assert keys.leases not in after
    assert await server.ttl(tokens.pop()) > 0
    assert await server.ttl(keys.events(one.job_id)) > 0
    assert await server.ttl(keys.job(one.job_id)) == -1


async def test_a_server_that_evicts_keys_is_refused(queue: RedisJobQueue, server: Redis) -> None:
    await queue.ping()
    await server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(FailedPreconditionError, match="allkeys-lru"):
            await queue.ping()
    finally:
        await server.config_set("maxmemory-policy", "noeviction")


async def test_a_full_server_is_reported_as_overload(queue: RedisJobQueue, server: Redis) -> None:
    await server.config_set("maxmemory", 1)
    try:
        with pytest.raises(MadpoError, match="out of memory"):
            await queue.create(request("r"))
    finally:
        await server.config_set("maxmemory", 0)
    with pytest.raises(NotFoundError):
        await queue.get(job_id_of("r"))
    await queue.create(request("r"))
