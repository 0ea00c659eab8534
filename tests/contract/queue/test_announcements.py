"""What workers say that they can do is known while they live, of all of a queue together."""

import asyncio

from redis.asyncio import Redis

from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect


async def test_live_workers_are_taken_together_and_queues_apart(queue: RedisJobQueue) -> None:
    assert await queue.announced("evaluate") is None

    await queue.announce("evaluate", "a", ["words", "bleu"])
    await queue.announce("evaluate", "b", ["words", "vader"])
    await queue.announce("train", "c", [])
    await queue.announce("evaluate", "a", ["bleu"])

    assert await queue.announced("evaluate") == {"bleu", "words", "vader"}
    assert await queue.announced("train") == frozenset()


async def test_a_worker_that_is_silent_for_a_lease_is_forgotten(
    queue: RedisJobQueue, server: Redis, each_redis_url: str, redis_namespace: str, keys: Keys
) -> None:
    hasty = connect(each_redis_url, namespace=redis_namespace, lease_s=0.001)
    await hasty.announce("evaluate", "gone", ["bleu"])
    while await hasty.announced("evaluate") is not None:
        await asyncio.sleep(0.001)
    await hasty.close()

    await queue.announce("evaluate", "here", ["words"])

    assert await queue.announced("evaluate") == {"words"}
    assert await server.hkeys(keys.announced("evaluate")) == ["here"]


async def test_the_short_life_of_one_does_not_end_that_of_others(
    queue: RedisJobQueue, each_redis_url: str, redis_namespace: str
) -> None:
    hasty = connect(each_redis_url, namespace=redis_namespace, lease_s=0.001)
    await queue.announce("evaluate", "here", ["words"])
    await hasty.announce("evaluate", "gone", ["bleu"])
    while (known := await hasty.announced("evaluate")) is not None and "bleu" in known:
        await asyncio.sleep(0.001)
    await hasty.close()

    assert await queue.announced("evaluate") == {"words"}
