"""The moments between the loss of the queue and the housekeeping: what callers see, and what hides a loss."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from madpo.queue.queue import RedisJobQueue, connect
from madpo.rpc import convert
from madpo.types import JobState
from madpo.v1 import job_service_pb2, model_service_pb2, retention_service_pb2
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import COMPLETIONS, NO_JOB, Gateway, eventually, refusal, running
from tests.integration.gateway.test_housekeeping import flush, json_spec, knows


@pytest.fixture
async def gateway(settings: GatewaySettings, redis_process: Any) -> AsyncIterator[Gateway]:
    """One whose housekeeping comes too late to be of help."""
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 3600.0})
    async with running(settings) as gateway:
        yield gateway


@pytest.fixture
async def lost_job(gateway: Gateway, redis_process: Any) -> str:
    """A job that was acknowledged, and that the queue has lost."""
    job_id = await gateway.ready_job()
    await flush(redis_process.url)
    assert not await knows(gateway.queue, job_id)
    return job_id


@pytest.mark.promise("J1")
@pytest.mark.parametrize("call", ["get", "watch", "checkpoints", "artifacts", "pin", "another that needs it"])
async def test_a_job_that_the_queue_has_just_lost_is_there_for_whoever_asks(
    gateway: Gateway, lost_job: str, call: str
) -> None:
    match call:
        case "get":
            found = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=lost_job))
            assert convert.job_from_proto(found.job).state is JobState.PENDING
        case "watch":
            watched = job_service_pb2.WatchJobRequest(job_id=lost_job, past_only=True)
            assert await gateway.collect(gateway.jobs.WatchJob, watched)
        case "checkpoints":
            asked = model_service_pb2.ListCheckpointsRequest(job_id=lost_job)
            assert not (await gateway.ask(gateway.models.ListCheckpoints, asked)).checkpoints
        case "artifacts":
            await gateway.ask(gateway.jobs.ListArtifacts, job_service_pb2.ListArtifactsRequest(job_id=lost_job))
        case "pin":
            await gateway.ask(gateway.retention.Pin, retention_service_pb2.PinRequest(thing_id=lost_job))
        case _:
            dataset = (await gateway.upload_dataset(COMPLETIONS)).dataset.dataset_id
            spec = {"supervised_training": {"model": {"job_id": lost_job}, "dataset": ref(dataset)}}
            assert (await gateway.create(spec, "next")).depends_on == [lost_job]


@pytest.mark.promise("J6")
async def test_a_job_that_the_queue_has_just_lost_can_be_cancelled_and_resumed(gateway: Gateway, lost_job: str) -> None:
    cancelled = await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=lost_job))
    assert convert.job_from_proto(cancelled.job).state is JobState.CANCELLED
    await flush(gateway.settings.redis_url.get_secret_value())

    resumed = await gateway.ask(gateway.jobs.ResumeJob, job_service_pb2.ResumeJobRequest(job_id=lost_job))

    assert convert.job_from_proto(resumed.job).state is JobState.PENDING


async def test_a_watch_that_looks_while_its_job_is_lost_goes_on(
    gateway: Gateway, redis_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.queue.watching._LOOK_AGAIN_S", 0.05)
    job_id = await gateway.ready_job()
    watching = asyncio.create_task(
        gateway.collect(gateway.jobs.WatchJob, job_service_pb2.WatchJobRequest(job_id=job_id))
    )
    await eventually(lambda: watched_jobs(gateway) == 1)
    await flush(redis_process.url)
    await eventually(lambda: knows(gateway.queue, job_id))  # brought back by the watch itself

    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))

    *_, last = await watching
    assert convert.event_from_proto(last.event).event.state is JobState.CANCELLED  # type: ignore[union-attr]


def watched_jobs(gateway: Gateway) -> float | None:
    return gateway.registry.get_sample_value("madpo_gateway_watch_streams")


async def test_what_nobody_asked_for_is_still_not_found(gateway: Gateway) -> None:
    for method, request in [
        (gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=NO_JOB)),
        (gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=NO_JOB)),
    ]:
        assert (await refusal(gateway.ask(method, request))).code == "NOT_FOUND"


async def test_a_job_that_is_being_deleted_is_not_brought_back_by_whoever_asks(gateway: Gateway) -> None:
    job_id = await gateway.ready_job("r")
    spec = (await gateway.queue.get(job_id)).spec
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    await gateway.queue.retire(job_id)  # as far as another gateway has come

    looked = await refusal(gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id)))
    again = await refusal(gateway.create({"supervised_training": json_spec(spec)}, "r"))

    assert (looked.code, again.code) == ("NOT_FOUND", "FAILED_PRECONDITION")
    assert "is being deleted" in looked.message
    assert "is being deleted" in again.message


@pytest.mark.promise("J1")
async def test_a_request_sent_again_right_after_the_loss_does_not_hide_it(
    settings: GatewaySettings, redis_process: Any
) -> None:
    """The newest job comes back by itself then, and all the others have to as well."""
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})
    async with running(settings) as gateway:
        older, newest = await gateway.ready_job("older"), await gateway.ready_job("newest")
        await asyncio.sleep(0.3)  # the gateway has looked at both
        await flush(redis_process.url)

        assert await gateway.ready_job("newest") == newest

        await eventually(lambda: knows(gateway.queue, older))


async def test_a_server_that_was_emptied_has_another_id(settings: GatewaySettings, redis_process: Any) -> None:
    queues: list[RedisJobQueue] = [connect(redis_process.url, namespace="a"), connect(redis_process.url, namespace="a")]
    first, same = [await queue.server_id() for queue in queues]
    await flush(redis_process.url)
    emptied = await queues[0].server_id()
    redis_process.kill()
    redis_process.start()
    restarted = await queues[1].server_id()
    for queue in queues:
        await queue.close()

    assert first == same
    assert len({first, emptied, restarted}) == 3
