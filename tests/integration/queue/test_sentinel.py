"""A queue behind sentinels: servers that are really failed over."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.ports import JobRequest
from madpo.queue.address import check_url, connect_redis, server_name
from madpo.queue.queue import RedisJobQueue, connect
from madpo.types import JobKind, JobState
from tests.conftest import RedisProcess, redis_program

PASSWORD = "a b#c"
_SENTINEL = """
port {port}
bind 127.0.0.1
dir {directory}
requirepass watching
sentinel monitor jobs 127.0.0.1 {primary} 1
sentinel auth-pass jobs "{password}"
sentinel down-after-milliseconds jobs 300
sentinel failover-timeout jobs 2000
"""


class Sentinel(RedisProcess):
    """One that watches a primary, called `jobs`."""

    def __init__(self, program: str, directory: Path, *, primary: int) -> None:
        super().__init__(program, directory)
        settings = directory / "sentinel.conf"
        settings.write_text(_SENTINEL.format(port=self.port, directory=directory, primary=primary, password=PASSWORD))
        self._command = [program, str(settings), "--sentinel"]


@dataclass
class Group:
    """A primary, a replica of it, and a sentinel of both."""

    servers: list[RedisProcess]
    sentinel: Sentinel

    @property
    def url(self) -> str:
        """By a sentinel that is not there, and then by the one that is."""
        return f"redis+sentinel://127.0.0.1:9,127.0.0.1:{self.sentinel.port}/jobs/0"

    def ask(self, *command: str) -> object:
        with redis.Redis(port=self.sentinel.port, password="watching", decode_responses=True) as client:
            return client.execute_command("SENTINEL", *command)

    def copy(self) -> None:
        """Wait until the replica has what was written: the primary answers before that."""
        with connect_redis(self.url, password=PASSWORD, sentinel_password="watching", blocking=True) as client:
            assert client.wait(1, 60_000) == 1

    def fails_over(self) -> bool:
        """Ask for it; refused while the sentinel has not heard from the replica lately."""
        try:
            return self.ask("FAILOVER", "jobs") is not None
        except redis.ResponseError:
            return False

    def primary(self) -> int:
        """The port of the server that the sentinel takes for the primary."""
        _, port = self.ask("GET-MASTER-ADDR-BY-NAME", "jobs")  # type: ignore[misc]
        return int(port)


@pytest.fixture(params=["valkey", "redis"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    program = redis_program(request.param)
    for name in ("first", "second", "sentinel"):
        (tmp_path / name).mkdir()
    passwords = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0")
    first = RedisProcess(program, tmp_path / "first", *passwords)
    servers = [
        first,
        RedisProcess(program, tmp_path / "second", *passwords, "--replicaof", "127.0.0.1", str(first.port)),
    ]
    sentinel = Sentinel(program, tmp_path / "sentinel", primary=first.port)
    for each in (*servers, sentinel):
        each.start()
    group = Group(servers, sentinel)
    wait_until(lambda: "slave" in str(group.ask("REPLICAS", "jobs")) and _is_linked(servers[1]))
    yield group
    for each in (*servers, sentinel):
        each.kill()


def _is_linked(replica: RedisProcess) -> bool:
    with redis.Redis(port=replica.port, password=PASSWORD) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def wait_until(met: Callable[[], object], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def open_queue(group: Group) -> RedisJobQueue:
    return connect(group.url, password=PASSWORD, sentinel_password="watching", namespace="sentinels")


async def create(queue: RedisJobQueue, request_id: str) -> str:
    """As a client that asks again while there is no primary."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return (await queue.create(JobRequest(request_id, JobKind.EVALUATION, {}))).job_id
        except UnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_jobs_go_on_at_the_new_primary_after_the_old_one_was_killed(group: Group) -> None:
    queue = open_queue(group)
    await queue.ping()
    before = await create(queue, "before")
    claim = await queue.claim("evaluate", "worker", timeout_s=5)
    assert claim is not None
    group.copy()

    group.servers[0].kill()
    wait_until(lambda: group.primary() == group.servers[1].port)
    after = await create(queue, "after")

    assert (await queue.get(before)).state is JobState.RUNNING
    await queue.renew(claim)
    assert (await queue.get(after)).state is JobState.PENDING
    await queue.close()


async def test_a_primary_that_is_made_a_replica_is_left_by_open_connections(group: Group) -> None:
    queue = open_queue(group)
    before = await create(queue, "before")
    group.copy()

    async def watch() -> list[object]:
        return [event async for event in queue.watch(before, cursor="")]

    watching = asyncio.create_task(watch())
    await asyncio.to_thread(wait_until, group.fails_over)
    await asyncio.to_thread(wait_until, lambda: group.primary() == group.servers[1].port)
    await asyncio.to_thread(wait_until, lambda: _is_linked(group.servers[0]))

    after = await create(queue, "after")
    assert {await _claimed(queue), await _claimed(queue)} == {before, after}
    watching.cancel()
    await queue.close()


async def _claimed(queue: RedisJobQueue) -> str:
    claim = await queue.claim("evaluate", "worker", timeout_s=5)
    assert claim is not None
    return claim.job.job_id


async def test_no_sentinel_and_an_unknown_name_are_told_with_where_it_was_looked(group: Group) -> None:
    for url in (group.url.replace("/jobs/", "/others/"), "redis+sentinel://127.0.0.1:9/jobs"):
        queue = connect(url, password=PASSWORD, sentinel_password="watching")
        with pytest.raises(
            UnavailableError, match=r"redis\+sentinel://127\.0\.0\.1:9.*/(others|jobs)/0 does not answer"
        ):
            await queue.ping()
        await queue.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1:26379",
        "redis+sentinel://127.0.0.1:26379/jobs/one",
        "redis+sentinel://,b:1/jobs",
        "redis+sentinel://a:none/jobs",
        "sentinel://a:1/jobs",
    ],
)
def test_a_url_without_what_is_needed_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"redis\+sentinel://\[:password@\]host:port,host:port,\.\.\./PRIMARY/0"
    ):
        check_url(url)


def test_what_the_url_says_reaches_the_servers_and_the_sentinels() -> None:
    client = connect_redis(
        "rediss+sentinel://me:a%23b@one,two:7/jobs/3?ssl_ca_certs=/ca.pem", password=None, sentinel_password="s"
    )

    options = client.connection_pool.connection_kwargs
    sentinels = [each.connection_pool.connection_kwargs for each in client.connection_pool.sentinel_manager.sentinels]  # type: ignore[attr-defined]
    assert (options["username"], options["password"], options["db"]) == ("me", "a#b", 3)
    assert [(each["host"], each["port"], each["password"]) for each in sentinels] == [
        ("one", 26379, "s"),
        ("two", 7, "s"),
    ]
    assert options["ssl_ca_certs"] == "/ca.pem"
    assert server_name(client) == "redis+sentinel://one:26379,two:7/jobs/3"
