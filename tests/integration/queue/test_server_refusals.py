"""What a real server refuses is told with what to do, and never with a credential."""

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, UnavailableError
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

    assert isinstance(error, FailedPreconditionError), error
    assert lacking in str(error)


async def test_the_rights_that_are_asked_for_are_enough(server: Redis, redis_url: str) -> None:
    asked = ("~refusals", "~refusals:*", "+@read", "+@write", "+@connection", "+@scripting", "+time", "+info")
    await server.execute_command("ACL", "SETUSER", "enough", "on", ">enough", *asked)

    assert await ping(redis_url, "enough:enough") is None
