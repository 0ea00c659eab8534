"""What the gateway says of the queues at each scrape, also while Redis is away or silent."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from madpo.ports import JobRequest, QueueStatus
from madpo.queue import metrics
from madpo.queue.metrics import QueueCollector
from madpo.queue.queue import RedisJobQueue, connect
from madpo.types import JobKind


class CountingQueue:
    """Counts the questions to a queue."""

    def __init__(self, queue: RedisJobQueue) -> None:
        self._queue = queue
        self.asked = 0

    async def status(self, name: str) -> QueueStatus:
        self.asked += 1
        return await self._queue.status(name)


@pytest.fixture
async def queue(redis_process: Any) -> AsyncIterator[RedisJobQueue]:
    queue = connect(redis_process.url)
    yield queue
    await queue.close()


@pytest.fixture
def counting(queue: RedisJobQueue) -> CountingQueue:
    return CountingQueue(queue)


@pytest.fixture
async def registry(counting: CountingQueue) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(QueueCollector(counting, asyncio.get_running_loop()))  # type: ignore[arg-type]
    return registry


async def scrape(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Values by metric and queue, read in another thread as the metrics server does."""
    families = await asyncio.to_thread(lambda: list(registry.collect()))
    return {
        (sample.name, sample.labels.get("queue", "")): sample.value for family in families for sample in family.samples
    }


async def test_every_queue_is_described_as_it_is_at_the_scrape(
    queue: RedisJobQueue, registry: CollectorRegistry
) -> None:
    empty = await scrape(registry)
    job = await queue.create(JobRequest("first", JobKind.POLICY_TRAINING, {}))
    await queue.create(JobRequest("second", JobKind.EVALUATION, {}, depends_on=(job.job_id,)))
    await queue.claim("train", "worker", timeout_s=0)
    await queue.create(JobRequest("third", JobKind.REWARD_TRAINING, {}))
    full = await scrape(registry)

    assert {name for name, _ in empty} == {
        "madpo_queue_up",
        "madpo_queue_depth",
        "madpo_queue_waiting",
        "madpo_queue_running",
        "madpo_queue_oldest_pending_seconds",
        "madpo_queue_dead_letters",
    }
    assert {value for (name, _), value in empty.items() if name != "madpo_queue_up"} == {0}
    assert full["madpo_queue_depth", "train"] == full["madpo_queue_running", "train"] == 1
    assert full["madpo_queue_waiting", "evaluate"] == 1
    assert full["madpo_queue_depth", "evaluate"] == full["madpo_queue_running", "evaluate"] == 0


async def test_while_redis_is_away_nothing_old_is_said_and_the_rest_is_read(
    queue: RedisJobQueue, registry: CollectorRegistry, redis_process: Any
) -> None:
    await queue.create(JobRequest("first", JobKind.POLICY_TRAINING, {}))
    assert (await scrape(registry))["madpo_queue_depth", "train"] == 1

    redis_process.kill()
    assert await scrape(registry) == {("madpo_queue_up", ""): 0}

    redis_process.start()
    back = await scrape(registry)
    assert (back["madpo_queue_up", ""], back["madpo_queue_depth", "train"]) == (1, 1)


async def test_scrapes_neither_hang_nor_pile_up_behind_a_silent_redis(
    counting: CountingQueue, registry: CollectorRegistry, redis_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scrape(registry)
    asked = counting.asked
    monkeypatch.setattr(metrics, "_ANSWER_TIMEOUT_S", 0.2)

    redis_process._process.send_signal(signal.SIGSTOP)
    try:
        silent = [await scrape(registry), *await asyncio.gather(scrape(registry), scrape(registry))]
    finally:
        redis_process._process.send_signal(signal.SIGCONT)

    assert silent == [{("madpo_queue_up", ""): 0}] * 3
    assert counting.asked == asked + 1
    async with asyncio.timeout(30):
        while (await scrape(registry))["madpo_queue_up", ""] == 0:
            await asyncio.sleep(0.05)
