"""One gateway for each module of hostile things."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.server import RunningServer
from madpo.storage.open import open_store
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from tests.hostile.door import TOKEN, Door


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> AsyncIterator[Door]:
    directory = tmp_path_factory.mktemp("door")
    settings = GatewaySettings(
        store_url=f"file://{directory}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace="hostile",
        token=SecretStr(TOKEN),
        scratch=directory / "scratch",
        grace_s=0,
    )
    registry = CollectorRegistry()
    server = RunningServer(GatewayService(settings, registry), settings, token=TOKEN, registry=registry)
    async with server, GatewayClient(f"127.0.0.1:{server.port}", token=TOKEN) as client:
        yield Door(client, settings, open_store(settings))
