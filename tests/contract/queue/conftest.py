"""An empty queue over every server it promises to work with."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect


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
