"""What the gateway sees to by itself: dead jobs, a queue that lost everything, scratch."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.rpc import convert
from madpo.storage import documents, keys
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.results import read_result
from madpo.types import JobResult, JobState
from madpo.v1 import job_service_pb2
from madpo_gateway.settings import GatewaySettings
from tests.damage import DAMAGES
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import eventually, running


def unknown_kind(data: bytes) -> bytes:
    """As a newer version would write it."""
    return documents.seal(documents.unseal(data, key="") | {"kind": "distillation"})


def unknown_format(data: bytes) -> bytes:
    """The same."""
    return documents.seal(documents.unseal(data, key=""), version=2)


async def test_a_job_nobody_works_on_any_more_fails_in_the_end_and_that_is_recorded(settings: GatewaySettings) -> None:
    async with running(settings.model_copy(update={"lease_s": 0.15})) as gateway:
        job_id = await gateway.ready_job()
        for _ in range(3):
            assert await gateway.queue.claim("train", "a worker that dies", timeout_s=10) is not None

        await eventually(lambda: gateway.store.head(keys.job_result(job_id)) is not None)

        outcome = read_result(gateway.store, job_id)
        assert outcome.state is JobState.FAILED
        assert "a worker that dies stopped renewing its lease" in outcome.reason


@pytest.mark.promise("D2")
@pytest.mark.parametrize("restarted", [False, True])
async def test_jobs_come_back_after_the_queue_lost_everything(
    settings: GatewaySettings, redis_process: Any, restarted: bool
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})
    async with running(settings) as gateway:
        done, cancelled, open_job = [await gateway.ready_job(name) for name in ("done", "cancelled", "open")]
        claim = await gateway.queue.claim("train", "worker", timeout_s=5)
        assert claim is not None
        await gateway.queue.succeed(claim, JobResult(summary={"loss": 0.5}))
        job = await gateway.queue.get(done)
        write_outcome(gateway.store, job)
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=cancelled))
        following = await gateway.create(
            {
                "supervised_training": {
                    "model": {"job_id": open_job},
                    "dataset": ref(str(job.spec["dataset"]["dataset_id"])),
                }
            },
            "following",
            display_name="after the others",
        )
        CheckpointStore(gateway.store, open_job, attempt=4).take_ownership()
        before = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
        # The gateway has seen its jobs once; only then can it miss them.
        await asyncio.sleep(0.3)
        if not restarted:
            await flush(redis_process.url)
            await eventually(lambda: knows(gateway.queue, following.job_id))
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
    if restarted:
        await flush(redis_process.url)
        async with running(settings) as gateway:
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())

    assert [job.job_id for job in after.jobs] == [job.job_id for job in before.jobs]
    restored = {job.job_id: job for job in map(convert.job_from_proto, after.jobs)}
    states = [restored[job_id].state.value for job_id in (done, cancelled, open_job, following.job_id)]
    assert states == ["SUCCEEDED", "CANCELLED", "PENDING", "WAITING"]
    assert restored[done].result == JobResult(summary={"loss": 0.5})
    assert restored[open_job].attempt == 4
    original = convert.job_from_proto(following)
    copy = restored[following.job_id]
    assert (copy.spec, copy.display_name, copy.depends_on) == (original.spec, "after the others", (open_job,))
    assert copy.create_time == pytest.approx(original.create_time, abs=1)


def write_outcome(store: ObjectStore, job: Any) -> None:
    from madpo.storage.results import write_result

    write_result(store, job.job_id, state=job.state, result=job.result, reason=job.reason)


async def flush(url: str) -> None:
    async with aclosing(Redis.from_url(url)) as client:
        await client.flushall()


async def knows(queue: RedisJobQueue, job_id: str) -> bool:
    return job_id in {job.job_id for job in (await queue.list(page_size=100))[0]}


@pytest.mark.parametrize("damage", [*DAMAGES, unknown_kind, unknown_format])
@pytest.mark.parametrize("document", [keys.job_spec, keys.job_result, keys.job_owner])
async def test_a_job_whose_documents_cannot_be_read_is_reported_and_the_others_come_back(
    settings: GatewaySettings, redis_process: Any, damage: Any, document: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        damaged, whole = await gateway.ready_job("damaged"), await gateway.ready_job("whole")
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=damaged))
        CheckpointStore(gateway.store, damaged, attempt=1).take_ownership()
        key = document(damaged)
        gateway.store.put(key, damage(gateway.store.get(key)))
    await flush(redis_process.url)

    with caplog.at_level(logging.ERROR):
        async with running(settings) as gateway:
            jobs, _ = await gateway.queue.list(page_size=10)

    assert whole in [job.job_id for job in jobs]
    if damage is not unknown_kind or document is keys.job_spec:
        assert damaged not in [job.job_id for job in jobs]
        (record,) = [record for record in caplog.records if record.message == "job cannot be restored"]
        assert key in record.error  # type: ignore[attr-defined]


@pytest.mark.promise("J1")
async def test_a_request_the_queue_lost_is_restored_not_made_anew(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        job_id = await gateway.ready_job("once")
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
        await flush(redis_process.url)

        assert await gateway.ready_job("once") == job_id

        assert (await gateway.queue.get(job_id)).state is JobState.CANCELLED


async def test_what_an_earlier_process_left_in_scratch_is_removed_and_nothing_else(settings: GatewaySettings) -> None:
    settings.uploads.mkdir(parents=True)
    (settings.uploads / "torn").write_bytes(b"x")
    (settings.scratch / "notes.txt").write_text("mine")

    async with running(settings) as gateway:
        assert gateway.spooled() == []

    assert (settings.scratch / "notes.txt").exists()
