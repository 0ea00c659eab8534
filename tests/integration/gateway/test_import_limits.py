"""Imports from a hub that never answers: they end, in time and with their clients, and nobody else waits for them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import OverloadedError
from madpo.rpc.channel import call_metadata
from madpo.v1 import job_service_pb2, model_service_pb2
from madpo_gateway.imports import Wanted
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.turns import Turns, TurnsBySize
from tests.integration.gateway.service import TOKEN, Gateway, eventually, refusal, running

pytest.importorskip("huggingface_hub")


class SilentHub:
    """Takes connections and requests, and says nothing."""

    def __init__(self) -> None:
        self.open = self.asked = 0
        self.url = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.asked += 1
        while await reader.read(1 << 16):
            pass
        self.open -= 1
        writer.close()


@asynccontextmanager
async def silent_hub() -> AsyncIterator[SilentHub]:
    hub = SilentHub()
    server = await asyncio.start_server(hub.take, "127.0.0.1", 0)
    hub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield hub


def begin(gateway: Gateway) -> Any:
    request = model_service_pb2.ImportModelRequest(hub_id="somebody/model")
    return gateway.models.ImportModel(request, metadata=call_metadata(TOKEN), timeout=120)


async def test_an_import_that_is_given_up_ends_at_the_hub(settings: GatewaySettings) -> None:
    async with silent_hub() as hub, running(settings.model_copy(update={"hub_endpoint": hub.url})) as gateway:
        given_up = begin(gateway)
        await eventually(lambda: hub.open == 1)
        given_up.cancel()
        async with asyncio.timeout(60):
            await eventually(lambda: hub.open == 0)
            await eventually(lambda: gateway.spooled() == [])
        assert hub.asked == 1


async def test_imports_beyond_the_most_wait_and_beyond_those_are_refused(settings: GatewaySettings) -> None:
    limits = {"max_imports": 1, "import_timeout_s": 600}
    async with silent_hub() as hub, running(settings.model_copy(update={"hub_endpoint": hub.url} | limits)) as gateway:
        imports = [begin(gateway) for _ in range(30)]
        async with asyncio.timeout(120):
            await eventually(lambda: sum(each.done() for each in imports) == 30 - 1 - 16)
            refused = await refusal(next(each for each in imports if each.done()))
            assert refused.code == "RESOURCE_EXHAUSTED"
            assert "imports from the hub go on" in refused.message
            await eventually(lambda: hub.asked == 1)
            await gateway.ask(gateway.models.ListModels, model_service_pb2.ListModelsRequest())
            await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
            for each in imports:
                each.cancel()
            await eventually(lambda: hub.open == 0 and gateway.spooled() == [])
        assert hub.asked == 1


async def test_an_import_that_takes_too_long_is_ended(settings: GatewaySettings) -> None:
    limits = {"import_timeout_s": 0.01}
    async with silent_hub() as hub, running(settings.model_copy(update={"hub_endpoint": hub.url} | limits)) as gateway:
        refused = await refusal(begin(gateway))
        assert refused.code == "DEADLINE_EXCEEDED"
        assert "import_timeout_s" in refused.message
        assert gateway.spooled() == []
        assert hub.open == 0


async def test_an_import_ends_with_its_gateway(tmp_path: Path) -> None:
    """Killed, a gateway can do nothing for it: the pipe between them ends."""
    async with silent_hub() as hub:
        wanted = Wanted("model", "somebody/model", "main", str(tmp_path), limit_bytes=1, endpoint=hub.url)
        script = (
            "import asyncio, sys\n"
            "from madpo_gateway.imports import HubImports, Wanted\n"
            f"asyncio.run(HubImports(at_once=1, timeout_s=600).fetch(Wanted(**{asdict(wanted)!r})))\n"
        )
        gateway = subprocess.Popen([sys.executable, "-c", script])
        async with asyncio.timeout(60):
            await eventually(lambda: hub.open == 1)
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.wait()
            await eventually(lambda: hub.open == 0)


async def test_turns_are_taken_in_order_and_given_back_whatever_happens() -> None:
    turns = Turns("things", at_once=1, waiting=2)
    order: list[int] = []
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        async with turns.turn():
            order.append(number)
            await go_on.wait()

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.wait({tasks[3]})
    assert "1 things go on and 2 wait" in str(tasks[3].exception())
    tasks[1].cancel()
    go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2]
    await work(5)


async def test_small_work_never_waits_for_large() -> None:
    turns = TurnsBySize("things", at_once=1, waiting=1, large_bytes=10)
    async with turns.turn(10), asyncio.timeout(30):
        waiting = asyncio.create_task(turns.turn(99).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="1 large things go on and 1 wait"):
            async with turns.turn(11):
                pass
        async with turns.turn(9):
            assert not waiting.done()
        waiting.cancel()
