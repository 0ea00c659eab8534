"""`madpo doctor` against a real gateway, over real gRPC."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.rpc import interceptors
from madpo.rpc.channel import open_channel
from madpo.rpc.server import RunningServer
from madpo_client.cli import main
from madpo_client.client import Client
from madpo_client.doctor import gateway
from madpo_client.doctor.gateway import check_gateway
from madpo_client.embedded import EmbeddedStack
from madpo_client.session import _background_loop
from madpo_client.settings import ClientSettings
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings

TOKEN = "a-token-of-this-test"
SCRIPT = Path(__file__).parents[3] / "scripts" / "make_ca.sh"
OK = {
    f"gateway.{name}"
    for name in ("reachable", "token", "tls", "version", "clock", "round_trip", "queue.train", "queue.evaluate")
}


def run(call: Any) -> Any:
    """In the loop the client's calls run in: one loop serves both sides."""
    return asyncio.run_coroutine_threadsafe(call, _background_loop()).result(60)


@contextmanager
def served(settings: GatewaySettings) -> Iterator[str]:
    async def start() -> RunningServer:
        service = GatewayService(settings, registry := CollectorRegistry())
        server = RunningServer(service, settings, token=TOKEN, registry=registry)
        await server.start()
        return server

    server: RunningServer = run(start())
    yield f"127.0.0.1:{server.port}"
    run(server.stop())


@pytest.fixture
def settings(redis_url: str, redis_namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GatewaySettings:
    for name in ("MADPO_SERVER", "MADPO_TOKEN_FILE", "MADPO_PROFILE", "MADPO_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    return GatewaySettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        scratch=tmp_path / "scratch",
        token=SecretStr(TOKEN),
        grace_s=1.0,
    )


@pytest.fixture
def server(settings: GatewaySettings) -> Iterator[str]:
    with served(settings) as address:
        yield address


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


def examine(server: str, token_file: Path | None, **given: Any) -> dict[str, str]:
    """Level of every check."""
    found = list(check_gateway(ClientSettings(server=server, token_file=token_file, **given)))
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding.level for finding in found}


def not_ok(found: dict[str, str]) -> dict[str, str]:
    return {check: level for check, level in found.items() if level != "ok"}


def test_a_gateway_as_it_should_be_is_ok_throughout(server: str, token_file: Path) -> None:
    found = examine(server, token_file)
    assert found.keys() == OK
    assert not_ok(found) == {}


def test_a_wrong_and_a_missing_token_are_told_from_an_unreachable_gateway(server: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong-" * 4)
    wrong.chmod(0o600)
    assert examine(server, wrong) == {"gateway.tls": "ok", "gateway.reachable": "ok", "gateway.token": "error"}
    assert not_ok(examine(server, None)) == {"gateway.token_file": "warning", "gateway.token": "error"}


@pytest.mark.parametrize(("ahead_s", "level"), [(-30.0, "warning"), (7200.0, "error")])
def test_a_gateway_whose_clock_is_wrong_is_told(
    server: str, token_file: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: str
) -> None:
    skewed = SimpleNamespace(time=lambda: time.time() + ahead_s, monotonic=time.monotonic)
    monkeypatch.setattr(interceptors, "time", skewed)
    assert not_ok(examine(server, token_file)) == {"gateway.clock": level}
    with Client(server, token=TOKEN) as client:
        assert client.server_info().clock_ahead_s == pytest.approx(ahead_s, abs=10.0)


def test_another_version_is_told(server: str, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "_VERSION", "99.1.0")
    found = list(check_gateway(ClientSettings(server=server, token_file=token_file)))
    (finding,) = [finding for finding in found if finding.level != "ok"]
    assert (finding.check, finding.level) == ("gateway.version", "warning")
    assert "99.1.0 at the gateway" in finding.message


def test_a_server_that_does_not_say_what_it_is_gets_a_warning_and_no_guess(
    server: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "_OPEN_PREFIXES", ("/",))
    found = examine(server, token_file)
    assert not_ok(found) == {"gateway.version": "warning"}
    assert "gateway.clock" not in found


def test_slow_calls_are_told(server: str, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_SLOW_S", 0.0)
    assert not_ok(examine(server, token_file)) == {"gateway.round_trip": "warning"}


def test_the_version_is_not_for_those_without_a_token(server: str) -> None:
    async def check_health() -> dict[str, Any]:
        async with open_channel(server) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert (await call).status == health_pb2.HealthCheckResponse.SERVING
            return dict(await call.trailing_metadata())

    assert run(check_health()) == {}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def make(days: int) -> Path:
        directory = tmp_path_factory.mktemp("tls") / "ca"
        subprocess.run(["bash", SCRIPT, "-t", str(days), directory], check=True, capture_output=True)
        return directory

    return make


def with_certificate(settings: GatewaySettings, directory: Path) -> GatewaySettings:
    return settings.model_copy(update={"tls_cert": directory / "gateway.crt", "tls_key": directory / "gateway.key"})


def test_tls_is_ok_and_its_certificates_end_is_watched(
    settings: GatewaySettings, certificates: Callable[[int], Path], token_file: Path
) -> None:
    for days, expected in ((60, {}), (10, {"gateway.certificate": "warning"})):
        directory = certificates(days)
        with served(with_certificate(settings, directory)) as server:
            found = examine(server, token_file, tls_ca=directory / "ca.crt")
        assert found.keys() == OK | {"gateway.certificate"}
        assert not_ok(found) == expected


def test_an_authority_that_did_not_sign_and_plain_text_to_tls_are_errors(
    settings: GatewaySettings, certificates: Callable[[int], Path], token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = certificates(60), certificates(60)
    with served(with_certificate(settings, ours)) as server:
        found = list(check_gateway(ClientSettings(server=server, token_file=token_file, tls_ca=others / "ca.crt")))
        assert [finding.check for finding in found if finding.level != "ok"] == ["gateway.reachable"]
        assert "not trusted here" in found[-1].message
        assert not_ok(examine(server, token_file)) == {"gateway.reachable": "error"}


def test_plain_text_to_another_host_is_a_warning(
    server: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "is_loopback", lambda target: False)
    assert not_ok(examine(server, token_file, plaintext=True)) == {"gateway.tls": "warning"}


def test_the_stack_of_this_machine_is_found_and_its_processes_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def doctor() -> tuple[Any, dict[str, str]]:
        monkeypatch.setattr(sys, "argv", ["madpo", "doctor", "--strict", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, {found["check"]: found["level"] for found in json.loads(capsys.readouterr().out)}

    monkeypatch.delenv("MADPO_SERVER", raising=False)
    monkeypatch.setenv("MADPO_HOME", str(tmp_path))
    with EmbeddedStack(tmp_path, reward_replicas=0, trainers=0, evaluators=0) as stack:
        code, found = doctor()
        assert found.keys() == OK | {"stack.redis", "stack.gateway"}
        assert (code, not_ok(found)) == (0, {})
        monkeypatch.setattr("madpo_client.embedded.stack.is_serving", lambda name, port, home: name != "redis")
        code, found = doctor()
        assert (code, not_ok(found)) == (1, {"stack.redis": "error"})
        assert stack.connection() is not None
