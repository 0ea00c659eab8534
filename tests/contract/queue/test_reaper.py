"""A live worker's job is never taken, whatever happens to the server and its clock; a dead worker's is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from madpo.errors import UnavailableError
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect
from madpo.queue.reaper import Reaper
from tests.contract.queue.jobs import claim, request

LEASE_S = 60
"""As the queue of these tests has it."""
HOUR_S = 3600


class Looks:
    """A reaper that looks every 20 seconds of a clock of the test's own."""

    def __init__(self, queue: RedisJobQueue) -> None:
        self.now = 0.0
        self.reaper = Reaper(queue, lease_s=LEASE_S, clock=lambda: self.now)

    async def look(self, *, after_s: float = 20.0) -> Sequence[str]:
        self.now += after_s
        return [job.job_id for job in await self.reaper.reap()]


@pytest.fixture
def looks(queue: RedisJobQueue) -> Looks:
    return Looks(queue)


@pytest.fixture
def set_clock(queue: RedisJobQueue, server: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Sets the server's clock ahead, as its scripts see it, by seconds."""
    import hashlib

    key = f"{keys.namespace}:clock"
    real = "local clock = redis.call('TIME')"
    moved = f"{real}\nclock[1] = clock[1] + tonumber(redis.call('GET', '{key}') or 0)"
    texts = {name: text.replace(real, moved) for name, (_, text) in queue._scripts.items()}
    assert all(moved in text for text in texts.values())
    digests = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in texts.items()}
    monkeypatch.setattr(queue, "_scripts", {name: (digests[name], text) for name, text in texts.items()})
    return lambda ahead_s: server.set(key, ahead_s)


@pytest.mark.promise("J3")
@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_jump_of_the_servers_clock_neither_takes_a_live_job_nor_keeps_a_dead_one(
    queue: RedisJobQueue, looks: Looks, set_clock: Any, jump_s: int, caplog: pytest.LogCaptureFixture, figure: Any
) -> None:
    for i in range(20):
        await queue.create(request(f"r{i}"))
    alive = [await claim(queue, f"alive-{i}") for i in range(19)]
    assert await looks.look() == []
    dead = await claim(queue, "dead")
    await set_clock(jump_s)

    taken = []
    for _ in range(6):
        taken.append(await looks.look())
        for claimed in alive:
            await queue.renew(claimed)

    # Seen at the first look, and unchanged for a lease since.
    assert taken == [[], [], [], [dead.job.job_id], [], []]
    # Between looks the test's clock alone goes on: 20 s each.
    jumps = [record.jump_s for record in caplog.records if "clock has jumped" in record.message]  # type: ignore[attr-defined]
    assert jumps == pytest.approx([jump_s - 20, *[-20] * 5], abs=5)
    figure(f"clock {jump_s:+d} s: 0 of 19 live jobs taken, 1 of 1 dead")


@pytest.mark.promise("J3")
async def test_after_the_server_took_no_writes_everybody_has_a_whole_lease_to_come_back(
    redis_process: Any, redis_namespace: str, figure: Any
) -> None:
    queue = connect(redis_process.url, namespace=redis_namespace, lease_s=LEASE_S)
    looks = Looks(queue)
    for name in ("alive", "dead"):
        await queue.create(request(name))
    alive, dead = await claim(queue, "alive"), await claim(queue, "dead")
    assert [await looks.look() for _ in range(3)] == [[], [], []]
    async with Redis.from_url(redis_process.url) as server:
        await server.config_set("min-replicas-to-write", 1)
        for call in (looks.look, lambda: queue.renew(alive)):
            with pytest.raises(UnavailableError, match="without enough replicas"):
                await call()
        looks.now += HOUR_S
        await server.config_set("min-replicas-to-write", 0)

    assert [await looks.look() for _ in range(3)] == [[], [], []]
    await queue.renew(alive)
    assert await looks.look() == [dead.job.job_id]
    figure("an hour without writes: 0 of 1 live jobs taken")
    await queue.close()


async def test_a_process_that_was_stopped_itself_does_not_judge_by_that_time(
    queue: RedisJobQueue, looks: Looks
) -> None:
    await queue.create(request("r"))
    claimed = await claim(queue)
    assert await looks.look() == []

    assert await looks.look(after_s=HOUR_S) == []  # the workers of this machine were stopped as well
    await queue.renew(claimed)

    assert [await looks.look() for _ in range(4)] == [[], [], [], [claimed.job.job_id]]


async def test_a_lease_holds_as_long_as_its_worker_said(each_redis_url: str, redis_namespace: str) -> None:
    patient = connect(each_redis_url, namespace=redis_namespace, lease_s=2 * LEASE_S)
    await patient.create(request("r"))
    claimed = await claim(patient)
    looks = Looks(patient)

    taken = [await looks.look() for _ in range(7)]

    assert taken == [[], [], [], [], [], [], [claimed.job.job_id]]
    await patient.close()
