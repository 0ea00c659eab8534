"""`madpo doctor --inside` against real servers: each check is seen to hold, and seen to fail."""

import asyncio
import errno
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.config import QueueSettings, ServiceSettings, StoreSettings, WorkerSettings
from madpo.errors import NotFoundError
from madpo.rpc.server import RunningServer
from madpo.storage.local import LocalStore
from madpo.storage.open import named_store
from madpo.v1 import reward_service_pb2
from madpo.v1.reward_service_pb2_grpc import RewardServiceServicer, add_RewardServiceServicer_to_server
from madpo_client.doctor import host, queue, store
from madpo_client.doctor.findings import Finding
from madpo_client.doctor.queue import check_queue
from madpo_client.doctor.reward import check_reward
from madpo_client.doctor.settings import Service
from madpo_client.doctor.store import check_contract, check_store

TOKEN = "t" * 20
PROMISES = {f"store.{name}" for name in ("create", "replace", "checksum", "multipart", "range", "delete")}


def by_check(found: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


def not_ok(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}


def clock_ahead(ahead_s: float) -> SimpleNamespace:
    """A `time` module whose clock is wrong."""
    return SimpleNamespace(time=lambda: time.time() + ahead_s, monotonic=time.monotonic)


# ---- Redis


class Redis:
    """A server of the test's own and what the doctor says about it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin = redis.Redis.from_url(url, decode_responses=True)

    def examine(self, url: str | None = None, *, password: str | None = None) -> dict[str, Finding]:
        settings = QueueSettings(
            store_url="file:///nowhere",
            redis_url=SecretStr(url or self.url),
            redis_password=SecretStr(password) if password else None,
        )
        return by_check(check_queue(Service("trainer", settings), settings))


@pytest.fixture
def server(redis_process: Any) -> Iterator[Redis]:
    server = Redis(redis_process.url)
    with server.admin:
        yield server


def test_a_redis_as_it_should_be_is_ok_throughout(server: Redis) -> None:
    found = server.examine()
    names = ("reachable", "password", "clock", "version", "eviction", "persistence", "fsync")
    assert found.keys() == {f"redis.{name}" for name in names}
    assert not_ok(found) == {}
    assert "Valkey" in found["redis.version"].message


@pytest.mark.parametrize(
    ("wrong", "check", "level"),
    [
        ({"appendonly": "no"}, "redis.persistence", "warning"),
        ({"maxmemory-policy": "allkeys-lru"}, "redis.eviction", "error"),
        ({"appendfsync": "no"}, "redis.fsync", "warning"),
        ({"maxmemory": "2mb"}, "redis.memory", "warning"),
    ],
)
def test_a_wrong_setting_is_the_one_thing_found(server: Redis, wrong: dict[str, str], check: str, level: str) -> None:
    if "maxmemory" in wrong:
        server.admin.set("filling", "x" * 1_500_000)
    for name, value in wrong.items():
        server.admin.config_set(name, value)
    assert not_ok(server.examine()) == {check: level}


def test_the_password_is_tried(server: Redis) -> None:
    server.admin.config_set("requirepass", "right")
    assert not_ok(server.examine(password="right")) == {}
    assert "asks for a password" in server.examine(password="right")["redis.password"].message
    for password in ("wrong", None):
        found = server.examine(password=password)
        assert not_ok(found) == {"redis.password": "error"}
        assert "MADPO_TRAINER_REDIS_PASSWORD" in found["redis.password"].advice
        assert "wrong" not in found["redis.password"].message


def test_an_open_redis_beyond_this_machine_is_a_warning(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "is_loopback_host", lambda host: False)
    assert not_ok(server.examine()) == {"redis.password": "warning"}


def test_what_a_user_may_not_ask_is_told_with_the_right_it_takes(server: Redis) -> None:
    url = server.url.replace("//", "//worker:secret@")
    server.admin.acl_setuser(
        "worker", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-config|get"]
    )
    found = server.examine(url)
    assert not_ok(found) == {"redis.fsync": "warning"}
    assert "+config|get" in found["redis.fsync"].advice
    server.admin.acl_setuser("worker", enabled=True, commands=["-info"])
    found = server.examine(url)
    assert not_ok(found) == {"redis.settings": "warning"}
    assert "+info" in found["redis.settings"].advice


@pytest.mark.parametrize(("ahead_s", "level"), [(-60.0, "warning"), (3600.0, "error")])
def test_a_clock_unlike_that_of_redis_is_told(
    server: Redis, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: str
) -> None:
    monkeypatch.setattr(queue, "time", clock_ahead(ahead_s))
    assert not_ok(server.examine()) == {"redis.clock": level}


def test_no_redis_and_no_url_of_one_are_errors(server: Redis, redis_process: Any) -> None:
    redis_process.kill()
    found = server.examine()
    redis_process.start()
    assert not_ok(found) == {"redis.reachable": "error"}
    assert "no Redis at redis://127.0.0.1" in found["redis.reachable"].message
    assert not_ok(server.examine("http://127.0.0.1")) == {"redis.reachable": "error"}


# ---- object store


class Liar(ThreadingHTTPServer):
    """Stands before a store and breaks one of its promises."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream, self.lie = upstream, ""
        super().__init__(("127.0.0.1", 0), LyingHandler)


class LyingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Liar

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lie = self.server.lie
        if lie == "delete" and self.command == "DELETE":
            return self.reply(204, {}, b"")
        if lie.startswith("50") and self.command == "PUT":
            status, code = lie.split()
            return self.reply(int(status), {}, f"<Error><Code>{code}</Code></Error>".encode())
        if lie == "rights" and self.command == "PUT":
            return self.reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body=body, headers=dict(self.headers))
        response = upstream.getresponse()
        status, data = response.status, response.read()
        upstream.close()
        hidden = ("content-length", "transfer-encoding", *(["date"] if lie == "date" else []))
        headers = {name: value for name, value in response.getheaders() if name.lower() not in hidden}
        if lie in self.headers and status in (400, 412):
            status, headers["ETag"], data = 200, '"made-up"', b""
        if lie == "Range" and "Range" in self.headers:
            data = data[::-1]
        if lie == "multipart" and self.command == "GET" and self.path.endswith("/multipart"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if lie == "date":
            headers["Date"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        return self.reply(status, headers, data, length=response.getheader("Content-Length"))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def reply(self, status: int, headers: dict[str, str], data: bytes, *, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", (length or "0") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def liar(s3_settings: StoreSettings) -> Iterator[Liar]:
    server = Liar((s3_settings.s3_endpoint or "").removeprefix("http://"))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_settings: StoreSettings) -> StoreSettings:
    """An existing bucket, and a prefix of the test's own."""
    named_store(s3_settings).check()
    return s3_settings.model_copy(update={"store_url": f"{s3_settings.store_url}/{uuid4().hex}"})


def examine(settings: StoreSettings, **changes: Any) -> dict[str, Finding]:
    settings = settings.model_copy(update=changes)
    return by_check(check_store(Service("trainer", settings), settings))


def test_a_store_that_keeps_its_promises_is_ok_and_left_empty(s3: StoreSettings) -> None:
    found = examine(s3)
    assert found.keys() == PROMISES | {"store.reachable", "store.clock"}
    assert not_ok(found) == {}
    assert list(named_store(s3).list("")) == []


def test_a_directory_as_store_is_tried_as_far_as_it_goes(tmp_path: Path) -> None:
    found = examine(StoreSettings(store_url=f"file://{tmp_path}/store"))
    assert found.keys() == {"store.reachable", "store.create", "store.replace", "store.delete"}
    assert not_ok(found) == {}
    assert list(LocalStore(tmp_path / "store").list("")) == []


@pytest.mark.parametrize(
    ("lie", "broken"),
    [
        ("If-None-Match", "store.create"),
        ("If-Match", "store.replace"),
        ("Content-MD5", "store.checksum"),
        ("Range", "store.range"),
        ("multipart", "store.multipart"),
        ("delete", "store.delete"),
        ("date", "store.clock"),
    ],
)
def test_a_broken_promise_is_the_one_thing_found(s3: StoreSettings, liar: Liar, lie: str, broken: str) -> None:
    liar.lie = lie
    assert not_ok(examine(s3, s3_endpoint=f"http://127.0.0.1:{liar.server_port}")) == {broken: "error"}


@pytest.mark.parametrize("ignored", ["put_if_absent", "put_if_match"])
def test_a_store_that_overwrites_is_found(tmp_path: Path, ignored: str) -> None:
    class Careless(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            return bool(self.put(key, data)) if ignored == "put_if_absent" else super().put_if_absent(key, data)

        def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
            return self.put(key, data) if ignored == "put_if_match" else super().put_if_match(key, data, etag)

    found = by_check(check_contract(Careless(tmp_path), "probes/test"))
    (check,) = not_ok(found)
    assert check == {"put_if_absent": "store.create", "put_if_match": "store.replace"}[ignored]
    assert "8 of 8 racing writers won" in found[check].message


def test_a_loser_that_overwrites_after_all_is_found(tmp_path: Path) -> None:
    class Sly(LocalStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            won = super().put_if_absent(key, data)
            if not won:
                self.put(key, data)
            return won

    found = by_check(check_contract(Sly(tmp_path), "probes/test"))
    assert not_ok(found) == {"store.create": "error"}
    assert "overwrote the one that won" in found["store.create"].message


def test_credentials_that_may_not_write_are_told(s3: StoreSettings, liar: Liar) -> None:
    liar.lie = "rights"
    found = examine(s3, s3_endpoint=f"http://127.0.0.1:{liar.server_port}")
    assert not_ok(found) == {"store.contract": "warning"}
    assert "probes/*" in found["store.contract"].advice
    assert "for s3:PutObject (403): check s3_access_key, s3_secret_key, and" in found["store.contract"].message


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("507 XMinioStorageFull", "is full (507): free some space"),
        ("500 InternalError", "is there room"),
    ],
)
def test_a_store_without_room_is_told_so(
    s3: StoreSettings, liar: Liar, lie: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib3.Retry.DEFAULT_BACKOFF_MAX", 0.001)
    liar.lie = lie
    found = examine(s3, s3_endpoint=f"http://127.0.0.1:{liar.server_port}")
    assert not_ok(found) == {"store.room": "error"}
    assert said in found["store.room"].message
    assert "make room" in found["store.room"].advice


def test_a_full_disk_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = examine(StoreSettings(store_url=f"file://{tmp_path}/store"))
    assert not_ok(found) == {"store.room": "error"}
    assert "is full: free some space on its disk" in found["store.room"].message


def test_wrong_credentials_buckets_and_settings_are_told(s3: StoreSettings) -> None:
    for changes, message in (
        ({"s3_secret_key": SecretStr("wrong-wrong")}, "the secret key does not belong to the access key"),
        ({"s3_access_key": SecretStr("wrong-wrong")}, "knows no such access key"),
        ({"store_url": f"s3://madpo-{uuid4().hex}"}, "has no bucket"),
        ({"s3_secret_key": None}, "s3_secret_key"),
        ({"store_url": "ftp://host"}, "store_url must be"),
    ):
        found = examine(s3, **changes)
        assert not_ok(found) == {"store.reachable": "error"}
        assert message in found["store.reachable"].message


def test_no_store_at_the_endpoint_is_an_error(
    s3: StoreSettings, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(s3, s3_endpoint=f"http://127.0.0.1:{unused_tcp_port}")
    assert not_ok(found) == {"store.reachable": "error"}
    assert "MADPO_TRAINER_S3_ENDPOINT" in found["store.reachable"].advice
    assert store._check_clock(f"http://127.0.0.1:{unused_tcp_port}").level == "warning"


# ---- other services, and the service itself


class Scorer(RewardServiceServicer):
    """A reward service without models."""

    def add_to_server(self, server: Any) -> tuple[str, ...]:
        add_RewardServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        return (reward_service_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name,)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def GetRewardModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotFoundError(f"no model {request.model_id}")


@pytest.fixture
async def scorer() -> Any:
    settings = ServiceSettings()
    async with RunningServer(Scorer(), settings, token=TOKEN, registry=CollectorRegistry()) as server:
        yield server


async def ask_reward(target: str | None, token: str | None) -> Finding:
    settings = WorkerSettings(
        store_url="file:///nowhere",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        workspace=Path("/nowhere"),
        reward_target=target,
        reward_token=SecretStr(token) if token else None,
    )
    (finding,) = await asyncio.to_thread(lambda: list(check_reward(Service("trainer", settings), settings)))
    return finding


async def test_the_reward_service_is_asked_with_the_workers_token(scorer: RunningServer) -> None:
    target = f"127.0.0.1:{scorer.port}"
    assert (await ask_reward(target, TOKEN)).level == "ok"
    for token in ("wrong-" * 4, None):
        finding = await ask_reward(target, token)
        assert (finding.level, "refuses the token" in finding.message) == ("error", True)
    assert (await ask_reward(None, None)).level == "warning"


async def test_no_reward_service_is_an_error(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("madpo_client.doctor.reward._TIMEOUT_S", 1.0)
    finding = await ask_reward(f"127.0.0.1:{unused_tcp_port}", TOKEN)
    assert (finding.level, "MADPO_TRAINER_REWARD_TARGET" in finding.advice) == ("error", True)


async def test_a_port_held_by_the_service_itself_is_fine(scorer: RunningServer) -> None:
    service = Service("reward", ServiceSettings(port=scorer.port))
    (finding,) = await asyncio.to_thread(lambda: list(host.check_ports(service)))
    assert (finding.level, "the service serves" in finding.message) == ("ok", True)


def test_a_trainer_in_its_place_is_examined_whole(s3: StoreSettings, redis_url: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    assert s3.s3_access_key
    assert s3.s3_secret_key
    (secrets / "madpo_trainer_s3_access_key").write_text(s3.s3_access_key.get_secret_value())
    (secrets / "madpo_trainer_s3_secret_key").write_text(s3.s3_secret_key.get_secret_value())
    environment |= {
        "MADPO_SECRETS_DIR": str(secrets),
        "MADPO_TRAINER_STORE_URL": s3.store_url,
        "MADPO_TRAINER_S3_ENDPOINT": s3.s3_endpoint or "",
        "MADPO_TRAINER_REDIS_URL": redis_url,
        "MADPO_TRAINER_WORKSPACE": str(tmp_path / "work"),
    }
    command = [sys.executable, "-m", "madpo_client.cli", "doctor", "--inside", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    found = {finding["check"]: finding["level"] for finding in json.loads(done.stdout)}
    assert {check for check, level in found.items() if level == "error"} == set()
    assert done.returncode == 0
    assert found["trainer.store.create"] == found["trainer.redis.eviction"] == found["trainer.settings"] == "ok"
    assert {f"trainer.{promise}" for promise in PROMISES} <= found.keys()
    assert s3.s3_secret_key.get_secret_value() not in done.stdout
