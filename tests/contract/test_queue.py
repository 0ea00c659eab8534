import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from madpo.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MadpoError,
    NotFoundError,
    StaleAttemptError,
)
from madpo.ports import Claim, JobRequest, QueueStatus
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.types import (
    CheckpointPublished,
    JobEvent,
    JobKind,
    JobProgress,
    JobResult,
    JobState,
    LogLine,
    StateChange,
)

QUEUE = "evaluate"


@pytest.fixture
async def queue(each_redis_url: str, redis_namespace: str) -> AsyncIterator[RedisJobQueue]:
    queue = connect(each_redis_url, namespace=redis_namespace, lease_s=60)
    yield queue
    await queue.close()


@pytest.fixture
async def server(each_redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(each_redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def keys(redis_namespace: str) -> Keys:
    return Keys(redis_namespace)


def request(name: str, *, depends_on: tuple[str, ...] = (), max_attempts: int = 3) -> JobRequest:
    return JobRequest(name, JobKind.EVALUATION, {"name": name}, depends_on=depends_on, max_attempts=max_attempts)


async def claim(queue: RedisJobQueue, worker_id: str = "worker") -> Claim:
    claimed = await queue.claim(QUEUE, worker_id, timeout_s=0)
    assert claimed is not None
    return claimed


async def expire_lease(server: Redis, keys: Keys, job_id: str) -> None:
    assert await server.zadd(keys.leases, {job_id: 1}, xx=True, ch=True) == 1


async def events(queue: RedisJobQueue, job_id: str, *, cursor: str = "") -> list[JobEvent]:
    return [event async for event in queue.watch(job_id, cursor=cursor)]


async def first_events(queue: RedisJobQueue, job_id: str, *, count: int) -> list[JobEvent]:
    async with contextlib.aclosing(queue.watch(job_id)) as watch:
        return [await anext(watch) for _ in range(count)]


def states(watched: list[JobEvent]) -> list[JobState]:
    return [event.event.state for event in watched if isinstance(event.event, StateChange)]


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
        await queue.give_back(claimed, crash_reason="boom")
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
    await queue.give_back(await claim(queue), crash_reason=None)
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
    await queue.give_back(first, crash_reason=None)
    second = await claim(queue, "two")
    assert (second.attempt, second.job.start_time) == (2, first.job.start_time)


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


@pytest.mark.parametrize("cursor", ["0", "$", "1-2-3", "-", "1-x", "9" * 30 + "-0"])
async def test_a_foreign_cursor_is_refused(queue: RedisJobQueue, cursor: str) -> None:
    job = await queue.create(request("r"))
    with pytest.raises(InvalidArgumentError, match="cursor"):
        await events(queue, job.job_id, cursor=cursor)


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


async def test_crashes_without_progress_end_a_job_as_a_dead_letter(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("r"))
    for _ in range(2):
        assert (await queue.give_back(await claim(queue), crash_reason="boom")).state == JobState.PENDING
    last = await queue.give_back(await claim(queue), crash_reason="out of memory")
    assert (last.state, last.attempt) == (JobState.FAILED, 3)
    assert last.reason == "crashed 3 times without progress; last: out of memory"
    ((_, letter),) = await server.xrange(keys.dead(QUEUE))
    assert letter == {"job_id": job.job_id, "attempt": "3", "reason": last.reason}


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


async def test_restore_rebuilds_jobs_in_any_order_and_changes_none_that_exist(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    done, next_, lost = (job_id_of(name) for name in ("done", "next", "lost"))
    waits_for_done = request("next", depends_on=(done,))
    result = JobResult("model-1", {"accuracy": 1.0})
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
    await queue.give_back(claimed, crash_reason="boom")
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
