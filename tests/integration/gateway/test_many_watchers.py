"""Many watch at once: the others' calls go on, and there is a limit that says so."""

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from madpo.errors import OverloadedError
from madpo.rpc.channel import call_metadata
from madpo.rpc.status import from_rpc_error
from madpo.v1 import job_service_pb2 as pb
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import TOKEN, Gateway, eventually, running

WATCHERS = 150


def watch(gateway: Gateway, job_id: str) -> Any:
    return gateway.jobs.WatchJob(pb.WatchJobRequest(job_id=job_id), metadata=call_metadata(TOKEN), timeout=60)


async def test_watchers_take_no_connection_each_and_calls_go_on_beside_them(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    watches = [watch(gateway, job_id) for _ in range(WATCHERS)]
    await asyncio.gather(*(each.read() for each in watches))
    async with Redis.from_url(gateway.settings.redis_url.get_secret_value()) as server:
        assert len(await server.client_list()) < 30
    for _ in range(3):
        jobs = await asyncio.gather(
            *(gateway.ask(gateway.jobs.GetJob, pb.GetJobRequest(job_id=job_id)) for _ in range(50))
        )
    assert {each.job.job_id for each in jobs} == {job_id}
    await gateway.ask(gateway.jobs.CancelJob, pb.CancelJobRequest(job_id=job_id))
    ends = await asyncio.gather(*(each.read() for each in watches))
    assert {each.event.state_change.state for each in ends} == {pb.JOB_STATE_CANCELLED}


async def test_a_watch_too_many_is_told_when_to_come_back(settings: GatewaySettings) -> None:
    async with running(settings.model_copy(update={"max_watchers": 2})) as gateway:
        job_id = await gateway.ready_job()
        watches = [watch(gateway, job_id) for _ in range(2)]
        for each in watches:
            await each.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(gateway, job_id).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = from_rpc_error(caught.value)
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s == 5.0
        assert "max_watchers" in str(error)

        for end in (watches[0].cancel, watches[1].cancel):  # one that goes, however, makes room
            end()

        async def is_admitted() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await watch(gateway, job_id).read() is not None
            return False

        await eventually(is_admitted)
        assert gateway.registry.get_sample_value("madpo_gateway_watch_streams") in (1.0, 2.0)
