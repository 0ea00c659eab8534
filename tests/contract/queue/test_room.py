"""How many jobs of a caller may be unfinished holds whoever asks at once."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from madpo.errors import OverloadedError
from madpo.ports import JobRequest
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, job_id_of
from tests.contract.queue.jobs import claim, request


def by(caller: str, name: str) -> JobRequest:
    return replace(request(name), submitted_by=caller)


async def create(queue: RedisJobQueue, name: str, *, caller: str = "ana", limit: int = 2) -> str:
    await queue.reserve(job_id_of(name), caller=caller, limit=limit)
    await asyncio.sleep(0.01)  # others ask meanwhile
    return (await queue.create(by(caller, name))).job_id


async def test_of_many_that_ask_at_once_as_many_get_room_as_there_is(queue: RedisJobQueue) -> None:
    answers = await asyncio.gather(*(create(queue, f"r{number}") for number in range(12)), return_exceptions=True)
    made = [each for each in answers if isinstance(each, str)]
    refused = [str(each) for each in answers if isinstance(each, OverloadedError)]
    assert (len(made), len(refused)) == (2, 10)
    assert set(refused) == {
        "the token 'ana' may have 2 unfinished jobs and has 2: wait for one to end, or cancel it",
    }
    await create(queue, "of-another", caller="bob")
    await queue.cancel(made[0])
    await create(queue, "next")


async def test_running_and_waiting_jobs_count_and_those_that_are_over_do_not(queue: RedisJobQueue) -> None:
    first = await create(queue, "first", limit=3)
    await queue.create(replace(by("ana", "second"), depends_on=(first,)))
    running = await claim(queue)
    for name in ("third", "fourth"):
        if name == "fourth":
            with pytest.raises(OverloadedError, match="may have 3 unfinished jobs and has 3"):
                await create(queue, name, limit=3)
        else:
            await create(queue, name, limit=3)
    await queue.fail(running, "no")  # and what waited for it
    await create(queue, "fourth", limit=3)
    await create(queue, "fifth", limit=3)


async def test_a_resumed_job_counts_for_who_resumed_it(queue: RedisJobQueue) -> None:
    ended = []
    for number in range(3):
        ended.append((await queue.create(by("ana", f"r{number}"))).job_id)
        await queue.cancel(ended[-1])

    async def resume(job_id: str, caller: str) -> None:
        await queue.reserve(job_id, caller=caller, limit=1)
        await queue.resume(job_id, resumes=0, resumed_by=caller)

    answers = await asyncio.gather(*(resume(job_id, "bob") for job_id in ended[:2]), return_exceptions=True)
    assert sorted(type(each) for each in answers if each is not None) == [OverloadedError]
    await resume(ended[2], "ana")
    with pytest.raises(OverloadedError, match="'ana' may have 1 unfinished jobs and has 1"):
        await create(queue, "new", limit=1)


async def test_room_that_is_not_used_is_free_again(queue: RedisJobQueue, server: Redis, keys: Keys) -> None:
    await queue.reserve(job_id_of("given up"), caller="ana", limit=1)
    await queue.reserve(job_id_of("given up"), caller="ana", limit=1)  # again is fine
    with pytest.raises(OverloadedError):
        await queue.reserve(job_id_of("other"), caller="ana", limit=1)
    await server.hset(f"{keys.namespace}:reserved", job_id_of("given up"), "1 ana")
    await queue.reserve(job_id_of("other"), caller="ana", limit=1)
    await queue.create(by("ana", "other"))
    assert await server.hgetall(f"{keys.namespace}:reserved") == {}
