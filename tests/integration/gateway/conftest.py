"""A gateway over an empty store and queue."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import TOKEN, Gateway, running


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, redis_namespace: str) -> GatewaySettings:
    return GatewaySettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        token=SecretStr(TOKEN),
        scratch=tmp_path / "scratch",
        max_upload_bytes=3_000_000,
        max_model_bytes=100_000,
        grace_s=0,
    )


@pytest.fixture
async def gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    async with running(settings) as gateway:
        yield gateway
