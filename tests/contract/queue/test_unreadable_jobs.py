"""Records of a newer version, or changed by hand: each is reported by its name, and is in nobody's way."""

import logging

import pytest
from redis.asyncio import Redis

from madpo.errors import UnknownFormatError
from madpo.ports import UnreadableJob
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue
from madpo.types import JobState
from tests.contract.queue.jobs import QUEUE, request

CHANGES = {
    "a newer format": {"format": "2"},
    "no number as format": {"format": "x"},
    "an unknown kind": {"kind": "distillation"},
    "an unknown state": {"state": "PAUSED"},
    "a spec that is not JSON": {"spec": "{"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_job_that_cannot_be_read_is_left_out_and_named(
    queue: RedisJobQueue, server: Redis, keys: Keys, change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    strange, plain = await queue.create(request("strange")), await queue.create(request("plain"))
    await server.hset(keys.job(strange.job_id), mapping=change)  # type: ignore[misc]

    with caplog.at_level(logging.ERROR):
        jobs, _ = await queue.list(page_size=10)

    assert [job.job_id for job in jobs] == [plain.job_id]
    assert [getattr(record, "job_id", None) for record in caplog.records] == [strange.job_id]
    with pytest.raises(UnknownFormatError, match=strange.job_id):
        await queue.get(strange.job_id)


@pytest.mark.parametrize("change", [CHANGES["a newer format"], CHANGES["an unknown kind"]])
async def test_a_worker_passes_over_a_job_that_it_cannot_read_and_takes_the_next(
    queue: RedisJobQueue, server: Redis, keys: Keys, change: dict[str, str]
) -> None:
    strange, plain = await queue.create(request("strange")), await queue.create(request("plain"))
    before = await server.hgetall(keys.job(strange.job_id))  # type: ignore[misc]
    await server.hset(keys.job(strange.job_id), mapping=change)  # type: ignore[misc]

    claim = await queue.claim(QUEUE, "worker", timeout_s=5)

    assert claim is not None
    assert claim.job.job_id == plain.job_id
    # After the upgrade that can read it, it says why it ended, and is resumed.
    await server.hset(keys.job(strange.job_id), mapping={name: before[name] for name in ("kind", "format")})  # type: ignore[misc]
    ended = await queue.get(strange.job_id)
    assert (ended.state, "upgrade madpo" in ended.reason) == (JobState.FAILED, True)
    assert (await queue.resume(strange.job_id, resumes=0)).state is JobState.PENDING


async def test_a_record_of_the_version_before_is_read_and_further_fields_are_passed_over(
    queue: RedisJobQueue, server: Redis, keys: Keys
) -> None:
    job = await queue.create(request("old"))
    await server.hdel(keys.job(job.job_id), "format")  # type: ignore[misc]
    await server.hset(keys.job(job.job_id), "priority", "7")  # type: ignore[misc]

    assert await queue.get(job.job_id) == job


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_scan_has_all_jobs_and_the_text_of_those_that_cannot_be_read(
    queue: RedisJobQueue, server: Redis, keys: Keys, change: dict[str, str]
) -> None:
    strange, plain = await queue.create(request("strange")), await queue.create(request("plain"))
    await server.hset(keys.job(strange.job_id), mapping=change)  # type: ignore[misc]

    newest, oldest = [job async for job in queue.scan()]

    assert newest == plain
    assert isinstance(oldest, UnreadableJob)
    assert oldest.job_id == strange.job_id
    assert next(iter(change.values())) in oldest.text


async def test_a_scan_goes_through_all_pages(queue: RedisJobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madpo.queue.queue._SCANNED_AT_ONCE", 2)
    made = [(await queue.create(request(f"job {number}"))).job_id for number in range(5)]

    assert [job.job_id async for job in queue.scan()] == made[::-1]
    await queue.cancel(made[0])
    await queue.retire(made[0])
    assert [job.job_id async for job in queue.scan()] == made[::-1]
