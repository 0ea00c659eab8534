"""The skeleton of every service, over a real socket."""

import asyncio
import subprocess
import sys
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client import CollectorRegistry

from madpo.config import ServiceSettings
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.server import RunningServer
from madpo.v1 import reward_service_pb2 as messages
from madpo.v1 import reward_service_pb2_grpc as stubs

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Slow(stubs.RewardServiceServicer):
    """A service that warms up, answers late, and has a defect."""

    def __init__(self):
        self.warm, self.entered, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.stopped = False

    def add_to_server(self, server):
        stubs.add_RewardServiceServicer_to_server(self, server)
        return ("madpo.v1.RewardService",)

    async def start(self):
        await self.warm.wait()

    async def stop(self):
        self.stopped = True

    async def GetRewardModel(self, request, context):  # noqa: N802
        if request.model_id == "defect":
            raise ZeroDivisionError("an inner detail")
        self.entered.set()
        await self.go_on.wait()
        return messages.GetRewardModelResponse()


async def health(port):
    async with open_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        return answer.status


@pytest.mark.promise("G3")
async def test_a_service_is_healthy_only_after_its_warm_up_and_calls_in_flight_outlast_the_drain():
    service, registry = Slow(), CollectorRegistry()
    server = RunningServer(service, ServiceSettings(grace_s=10), registry=registry)
    starting = asyncio.create_task(server.start())
    while not server.port:
        await asyncio.sleep(0)
    assert await health(server.port) == NOT_SERVING
    service.warm.set()
    await starting
    assert await health(server.port) == SERVING

    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        call = stubs.RewardServiceStub(channel).GetRewardModel(messages.GetRewardModelRequest())
        await service.entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert not service.stopped
        service.go_on.set()
        await call
    await stopping

    assert service.stopped
    method = "/madpo.v1.RewardService/GetRewardModel"
    assert registry.get_sample_value("madpo_rpc_calls_total", {"method": method, "code": "OK"}) == 1


async def test_a_defect_is_told_by_its_request_id_only_and_health_needs_no_token():
    service = Slow()
    service.warm.set()
    async with RunningServer(service, ServiceSettings(), token="t" * 20, registry=CollectorRegistry()) as server:
        assert await health(server.port) == SERVING
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            stub, request = stubs.RewardServiceStub(channel), messages.GetRewardModelRequest(model_id="defect")
            for token, code in ((None, "UNAUTHENTICATED"), ("t" * 19, "UNAUTHENTICATED"), ("t" * 20, "INTERNAL")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetRewardModel(request, metadata=call_metadata(token, request_id="r-42"))
                assert caught.value.code().name == code
            assert caught.value.details() == "internal error, request r-42"


async def test_reflection_is_served_on_request():
    service = Slow()
    service.warm.set()
    async with RunningServer(service, ServiceSettings(reflection=True), registry=CollectorRegistry()) as server:

        def services():
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                return ProtoReflectionDescriptorDatabase(channel).get_services()

        assert "madpo.v1.RewardService" in await asyncio.to_thread(services)


def test_a_process_may_have_as_many_connections_as_the_system_lets_it():
    script = (
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "from madpo.rpc.server import raise_open_files\n"
        "raise_open_files()\n"
        "raise_open_files()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    soft, kept, hard = map(int, done.stdout.split())

    assert kept == hard
    assert soft == (65_536 if hard == -1 else min(hard, 65_536))


class Prompt(Slow):
    """Turns away what it cannot look at soon; while it is busy it looks at nothing."""

    max_unseen_calls = 4

    def __init__(self):
        super().__init__()
        self.warm.set()
        self.turned_away, self.is_busy = threading.Event(), False

    async def GetRewardModel(self, request, context):  # noqa: N802
        if not self.is_busy:
            self.is_busy = True
            assert self.turned_away.wait(30)  # the event loop with it
        return messages.GetRewardModelResponse()


async def test_calls_that_nobody_can_look_at_are_turned_away_and_the_others_answered():
    service = Prompt()

    def note(call):
        if call.code() == grpc.StatusCode.CANCELLED:
            service.turned_away.set()

    def call_all(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = stubs.RewardServiceStub(channel)
            calls = [stub.GetRewardModel.future(messages.GetRewardModelRequest(), timeout=60) for _ in range(100)]
            for call in calls:
                call.add_done_callback(note)
            return [call.code() for call in calls]

    async with RunningServer(service, ServiceSettings(), registry=CollectorRegistry()) as server:
        codes = await asyncio.to_thread(call_all, server.port)
        again = await asyncio.to_thread(call_all, server.port)

    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert grpc.StatusCode.OK in again
