"""What a real server refuses is told with what to do, and never with a credential."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, OverloadedError, UnavailableError
from madpo.ports import JobRequest
from madpo.queue.queue import connect
from madpo.types import JobKind

PASSWORD = "correct horse#battery/staple?@[9]"


@pytest.fixture
async def server(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True)
    yield client
    for name in await client.acl_users():
        if name != "default":
            await client.acl_deluser(name)
    await client.aclose()


@pytest.mark.parametrize("character", ["#", "/", "?", "[", " "])
@pytest.mark.parametrize("user", ["", "me"])
def test_a_password_that_a_url_would_cut_is_refused_and_no_part_of_it_is_told(user: str, character: str) -> None:
    with pytest.raises(InvalidArgumentError, match="percent-encode it") as caught:
        connect(f"redis://{user}:12{character}hunter@127.0.0.1:6379/0")

    told = f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"
    assert "hunter" not in told
    assert "12" not in told


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis://127.0.0.1:no-port"])
def test_a_url_of_something_else_is_refused_unseen(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="redis_url must be redis://") as caught:
        connect(url)

    assert "no-port" not in f"{caught.value}{caught.value.__cause__}"


async def ping(redis_url: str, credentials: str) -> MadpoError | None:
    queue = connect(redis_url.replace("redis://", f"redis://{credentials}@"), namespace="refusals")
    try:
        await queue.ping()
        await queue.create(JobRequest("r", JobKind.EVALUATION, {}))
        await queue.claim("evaluate", "worker", timeout_s=0)
        await queue.announce("evaluate", "worker", ["words"])
        await queue.announced("evaluate")
    except MadpoError as error:
        return error
    finally:
        await queue.close()
    return None


async def test_an_encoded_password_is_taken_whole_and_a_wrong_one_is_called_so(server: Redis, redis_url: str) -> None:
    await server.execute_command("ACL", "SETUSER", "whole", "on", f">{PASSWORD}", "~*", "+@all")

    right = await ping(redis_url, f"whole:{quote(PASSWORD, safe='')}")
    wrong = await ping(redis_url, "whole:other")

    assert right is None
    assert isinstance(wrong, UnavailableError)
    assert "refuses the password of user whole: give the server's in redis_password" in str(wrong)
    assert "does not answer" not in str(wrong)


@pytest.mark.parametrize(
    ("rights", "lacking"),
    [
        (["~*", "+@all", "-info"], "user short may not run INFO (ACL SETUSER short +info)"),
        (["~*", "+@all", "-evalsha", "-eval"], "user short may not run EVALSHA (ACL SETUSER short +evalsha)"),
        (["~*", "+@all", "-time"], "user short may not run TIME (ACL SETUSER short +time)"),
        (["~other:*", "+@all"], "user short may not use the queue's keys (ACL SETUSER short ~NAMESPACE ~NAMESPACE:*"),
    ],
)
async def test_a_right_that_lacks_is_named_with_the_line_to_add(
    server: Redis, redis_url: str, rights: list[str], lacking: str
) -> None:
    await server.execute_command("ACL", "SETUSER", "short", "on", ">short", *rights)

    error = await ping(redis_url, "short:short")

    assert isinstance(error, UnavailableError), error
    assert lacking in str(error)


async def test_the_rights_that_are_asked_for_are_enough(server: Redis, redis_url: str) -> None:
    asked = ("~refusals", "~refusals:*", "+@read", "+@write", "+@connection", "+@scripting", "+time", "+info")
    await server.execute_command("ACL", "SETUSER", "enough", "on", ">enough", *asked)

    assert await ping(redis_url, "enough:enough") is None


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ("READONLY You can't write against a read only replica.", UnavailableError, "is a replica"),
        ("ERR Error running script: @user_script: 9: -READONLY You can't write", UnavailableError, "is a replica"),
        (
            "MISCONF Redis is configured to save RDB snapshots",
            UnavailableError,
            "cannot write to its disk",
        ),
        ("NOREPLICAS Not enough good replicas to write.", UnavailableError, "without enough replicas"),
        ("LOADING Redis is loading the dataset in memory", UnavailableError, "still loading"),
        ("MASTERDOWN Link with MASTER is down", UnavailableError, "lost its primary"),
        ("CLUSTERDOWN The cluster is down", UnavailableError, "cluster that is down"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", UnavailableError, "moving its keys"),
        ("BUSY Redis is busy running a script", UnavailableError, "busy with a script"),
        ("OOM command not allowed when used memory > 'maxmemory'.", OverloadedError, "raise maxmemory"),
        ("NOAUTH Authentication required.", UnavailableError, "refuses the password"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", UnavailableError, "may not run EVALSHA"),
        ("MOVED 3999 127.0.0.1:6381", FailedPreconditionError, "part of a cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", FailedPreconditionError, "part of a cluster"),
    ],
)
async def test_whatever_a_server_refuses_scripts_with_is_waited_for_by_name_or_refused(
    reply: str, kind: type[MadpoError], said: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()).startswith(b"*"):
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2)).strip())
            is_script = words[0].upper().startswith(b"EVAL")
            writer.write(f"-{reply}\r\n".encode() if is_script else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    queue = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", namespace="refusals")
    try:
        with pytest.raises(MadpoError, match=said) as caught:
            await asyncio.wait_for(queue.claim("evaluate", "worker", timeout_s=0), 30)
    finally:
        await queue.close()
        server.close()

    assert type(caught.value) is kind
