"""Real handshakes on loopback, with certificates made by the script users run."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from madpo.config import ServiceSettings, WorkerSettings
from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, UnavailableError
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.health import check_serving
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.rpc.tls import ClientTls, check_files, explain_handshake
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import (
    RewardServiceServicer,
    RewardServiceStub,
    add_RewardServiceServicer_to_server,
)
from madpo_client import Client

SCRIPT = Path(__file__).parents[3] / "scripts" / "make_ca.sh"
TOKEN = "t" * 20


def make_certificates(directory: Path, *names: str, days: int = 10) -> Path:
    subprocess.run(["bash", SCRIPT, "-t", str(days), directory, *names], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "ours", "gpu-host", "10.1.2.3", "0.0.0.0")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "others")


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "expired", days=-1)


def identity(certificates: Path, name: str) -> ClientTls:
    return ClientTls(certificates / "ca.crt", certificates / f"{name}.crt", certificates / f"{name}.key")


# ---- between services


class Scorer(RewardServiceServicer):
    """A service with one answer."""

    def add_to_server(self, server):
        add_RewardServiceServicer_to_server(self, server)
        return ("madpo.v1.RewardService",)

    async def start(self):
        pass

    async def stop(self):
        pass

    async def GetRewardModel(self, request, context):  # noqa: N802
        return reward.GetRewardModelResponse(reward_model=reward.RewardModel(model_id=request.model_id, revision="r1"))


def tls_settings(certificates: Path, *, mutual: bool = False, name: str = "reward") -> ServiceSettings:
    return ServiceSettings(
        tls_cert=certificates / f"{name}.crt",
        tls_key=certificates / f"{name}.key",
        tls_client_ca=certificates / "ca.crt" if mutual else None,
    )


def served(settings: ServiceSettings) -> RunningServer:
    return RunningServer(Scorer(), settings, token=TOKEN, registry=CollectorRegistry())


async def ask(server: RunningServer, tls: ClientTls | None, *, host: str = "127.0.0.1") -> str:
    async with RewardClient(f"{host}:{server.port}", token=TOKEN, tls=tls) as client:
        return (await client.get_reward_model("model-" + "0" * 32)).revision


async def refusal(server: RunningServer, tls: ClientTls | None, *, host: str = "127.0.0.1") -> str:
    """Why a single call is refused: as explained, or in gRPC's own words."""
    async with open_channel(f"{host}:{server.port}", tls=tls) as channel:
        stub = RewardServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetRewardModel(reward.GetRewardModelRequest(), metadata=call_metadata(TOKEN), timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    details = caught.value.details() or ""
    return explain_handshake(details) or details


async def test_a_client_that_trusts_the_authority_gets_its_answer(ours: Path) -> None:
    async with served(tls_settings(ours)) as server:
        assert await ask(server, ClientTls(ours / "ca.crt")) == "r1"
        assert await ask(server, ClientTls(ours / "ca.crt"), host="localhost") == "r1"


async def test_without_an_authority_those_of_the_system_are_trusted(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tls_settings(ours)) as server:
        assert "an authority that is not trusted here" in await refusal(server, ClientTls())
        monkeypatch.setenv("SSL_CERT_FILE", str(ours / "ca.crt"))
        assert await ask(server, ClientTls()) == "r1"


async def test_another_authority_is_the_reason_given_after_the_last_try(ours: Path, others: Path) -> None:
    async with served(tls_settings(ours)) as server:
        target = f"127.0.0.1:{server.port}"
        async with RewardClient(target, tls=ClientTls(others / "ca.crt"), load_timeout_s=8) as client:
            with pytest.raises(UnavailableError, match=f"{target} .* an authority that is not trusted here"):
                await client.get_reward_model("model-" + "0" * 32)


async def test_a_certificate_of_another_machine_is_refused(others: Path) -> None:
    async with served(tls_settings(others).model_copy(update={"host": "0.0.0.0"})) as server:
        reason = await refusal(server, ClientTls(others / "ca.crt"), host="0.0.0.0")
        assert "its certificate is for other names" in reason


async def test_plain_text_and_tls_do_not_meet(ours: Path) -> None:
    async with served(tls_settings(ours)) as server:
        assert "Socket closed" in await refusal(server, None)
    async with served(ServiceSettings()) as server:
        assert "it speaks plain text" in await refusal(server, ClientTls(ours / "ca.crt"))


async def test_an_expired_certificate_is_the_reason_given(expired: Path) -> None:
    credentials = grpc.ssl_server_credentials(
        [((expired / "reward.key").read_bytes(), (expired / "reward.crt").read_bytes())]
    )
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with open_channel(f"127.0.0.1:{port}", tls=ClientTls(expired / "ca.crt")) as channel:
            await channel.unary_unary("/x/y")(b"")
    await server.stop(None)
    assert (
        explain_handshake(caught.value.details() or "")
        == "its certificate has expired; renew it and restart the service"
    )


async def test_mutual_tls_lets_in_only_holders_of_our_certificates(ours: Path, others: Path) -> None:
    stranger = ClientTls(ours / "ca.crt", others / "trainer.crt", others / "trainer.key")
    async with served(tls_settings(ours, mutual=True)) as server:
        assert await ask(server, identity(ours, "trainer")) == "r1"
        for unknown in (ClientTls(ours / "ca.crt"), stranger):
            assert "Socket closed" in await refusal(server, unknown)


# ---- health


@pytest.mark.parametrize("mode", ["plain", "tls", "mutual"])
async def test_health_tells_serving_from_not_serving_and_from_nobody(ours: Path, mode: str) -> None:
    settings = ServiceSettings() if mode == "plain" else tls_settings(ours, mutual=mode == "mutual")
    async with served(settings) as server:
        asked = settings.model_copy(update={"port": server.port})
        await asyncio.to_thread(check_serving, asked)
        await asyncio.to_thread(check_serving, asked.model_copy(update={"host": "0.0.0.0"}))
        await server._set_health(2)
        with pytest.raises(UnavailableError, match="NOT_SERVING"):
            await asyncio.to_thread(check_serving, asked)
    with pytest.raises(UnavailableError, match="does not answer"):
        await asyncio.to_thread(check_serving, asked)


async def test_health_needs_no_name_of_loopback_in_the_certificate(tmp_path: Path) -> None:
    cert, key = tmp_path / "public.crt", tmp_path / "public.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", key, "-out", cert, "-subj", "/CN=x", "-addext", "subjectAltName=DNS:*.madpo.example"]
    subprocess.run(command, check=True, capture_output=True)
    settings = ServiceSettings(tls_cert=cert, tls_key=key)
    async with served(settings) as server:
        await asyncio.to_thread(check_serving, settings.model_copy(update={"port": server.port}))


def run_module(name: str, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """`python -m madpo_NAME ARGUMENTS`; its last line on standard output says whether torch was imported."""
    code = f"import runpy, sys; sys.argv[0] = 'madpo_{name}'\n"
    code += f"try: runpy.run_module('madpo_{name}', run_name='__main__', alter_sys=False)\n"
    code += "finally: print('torch' in sys.modules)\n"
    prefix = f"MADPO_{name.upper()}_"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited() | {prefix + key: str(value) for key, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}


REQUIRED = {
    "gateway": {"REDIS_URL": "redis://127.0.0.1:1/0", "TOKEN": TOKEN, "SCRATCH": "/nonexistent"},
    "reward": {"CACHE": "/nonexistent"},
    "trainer": {"REDIS_URL": "redis://127.0.0.1:1/0", "WORKSPACE": "/nonexistent"},
    "evaluator": {"REDIS_URL": "redis://127.0.0.1:1/0", "WORKSPACE": "/nonexistent"},
}


@pytest.mark.parametrize("name", REQUIRED)
def test_the_health_command_says_why_in_one_line_and_needs_no_torch(name: str, unused_tcp_port: int) -> None:
    done = run_module(name, "health", **REQUIRED[name], STORE_URL="file:///none", PORT=unused_tcp_port)

    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr.startswith(f"{name}: 127.0.0.1:{unused_tcp_port} does not answer")
    assert len(done.stderr.splitlines()) == 1


async def test_the_health_command_is_0_while_the_service_serves(ours: Path) -> None:
    settings = tls_settings(ours, mutual=True)
    files = {name.upper(): getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
    async with served(settings) as server:
        variables = {**REQUIRED["reward"], **files, "STORE_URL": "file:///none", "PORT": server.port}
        done = await asyncio.to_thread(run_module, "reward", "health", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        await server._set_health(2)
        done = await asyncio.to_thread(run_module, "reward", "health", **variables)
        assert (done.returncode, done.stderr) == (1, f"reward: 127.0.0.1:{server.port} answers NOT_SERVING\n")


def test_health_of_a_port_left_open_asks_for_it() -> None:
    done = run_module("reward", "health", **REQUIRED["reward"], STORE_URL="file:///none")
    assert (done.returncode, "MADPO_REWARD_PORT is 0" in done.stderr) == (1, True)


def test_a_service_takes_no_other_word() -> None:
    done = run_module("reward", "helth")
    assert (done.returncode, done.stderr) == (2, "usage: python -m madpo_reward [health]\n")


# ---- files


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "said"),
    [
        ("{ours}/away.crt", "{ours}/reward.key", None, r"ours/away\.crt cannot be read: No such file"),
        ("{ours}/reward.crt", "{others}/reward.key", None, "the key is another certificate's"),
        ("{ours}/reward.key", "{ours}/reward.key", None, r"reward\.key are no certificate with its key"),
        ("{expired}/reward.crt", "{expired}/reward.key", None, r"expired/reward\.crt .* certificate has expired"),
        ("{ours}/reward.crt", "{ours}/reward.key", "{others}/ca.crt", r"is not accepted by .*others/ca\.crt"),
        ("{ours}/reward.crt", "{ours}/reward.key", "{ours}/ca.key", r"ca\.key holds no certificate of an authority"),
    ],
)
async def test_files_that_cannot_serve_are_named_before_the_port_opens(
    ours: Path, others: Path, expired: Path, cert: str, key: str, client_ca: str | None, said: str
) -> None:
    def path(template: str) -> Path:
        return Path(template.format(ours=ours, others=others, expired=expired))

    settings = ServiceSettings(
        tls_cert=path(cert), tls_key=path(key), tls_client_ca=path(client_ca) if client_ca else None
    )
    server = served(settings)
    with pytest.raises(FailedPreconditionError, match=said):
        await server.start()
    assert server.port == 0


def test_a_worker_checks_the_authority_of_the_scorers_when_it_starts(ours: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"store_url": "file:///x", "redis_url": "redis://h:1/0", "workspace": tmp_path}
    check_files(WorkerSettings(**fields, tls_ca=ours / "ca.crt"))
    with pytest.raises(FailedPreconditionError, match=r"away\.crt cannot be read"):
        check_files(WorkerSettings(**fields, tls_ca=tmp_path / "away.crt"))

    done = run_module("trainer", **REQUIRED["trainer"], STORE_URL="file:///none", TLS_CA=tmp_path / "away.crt")
    assert done.returncode == 1
    assert done.stderr.strip() == f"trainer: {tmp_path}/away.crt cannot be read: No such file or directory"


# ---- the script


def test_the_script_makes_private_keys_and_names_the_machine(ours: Path) -> None:
    shown = ["openssl", "x509", "-in", ours / "gateway.crt", "-noout", "-text"]
    text = subprocess.run(shown, check=True, capture_output=True, text=True).stdout

    assert "DNS:gateway, DNS:localhost, IP Address:127.0.0.1" in text
    assert "DNS:gpu-host, IP Address:10.1.2.3" in text
    assert "ASN1 OID: prime256v1" in text
    assert ours.stat().st_mode & 0o777 == 0o700
    keys = list(ours.glob("*.key"))
    assert sorted(key.stem for key in keys) == ["ca", "client", "evaluator", "gateway", "reward", "trainer"]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_the_script_replaces_nothing_and_renews_what_was_moved_away(tmp_path: Path) -> None:
    directory = make_certificates(tmp_path / "tls")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for name in ("reward.crt", "reward.key"):
        (directory / name).unlink()

    make_certificates(directory)

    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"reward.crt", "reward.key"}
    assert after.keys() == before.keys()
    check_files(tls_settings(directory, mutual=True))


def test_the_script_refuses_half_of_a_pair(tmp_path: Path) -> None:
    directory = make_certificates(tmp_path / "tls")
    (directory / "client.key").unlink()
    done = subprocess.run(["bash", SCRIPT, directory], capture_output=True, text=True)
    assert (done.returncode, "has client.crt but no client.key" in done.stderr) == (1, True)


# ---- from the client to the gateway


@dataclass
class Gateway:
    """A gateway process that listens on every address of this machine."""

    port: int
    token_file: Path

    def client(self, host: str, **options: Any) -> Client:
        return Client(f"{host}:{self.port}", token_file=self.token_file, **options)


@pytest.fixture
def gateway(tmp_path: Path, redis_url: str, redis_namespace: str, unused_tcp_port: int) -> Iterator[Callable[..., Any]]:
    """Starts a gateway with these settings; its token is in a secret file only."""
    (tmp_path / "secrets").mkdir()
    token_file = tmp_path / "secrets" / "madpo_gateway_token"
    token_file.write_text(f"{TOKEN}\n")
    processes: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> Gateway:
        values = {
            "HOST": "0.0.0.0",
            "PORT": unused_tcp_port,
            "STORE_URL": f"file://{tmp_path}/store",
            "REDIS_URL": redis_url,
            "REDIS_NAMESPACE": redis_namespace,
            "SCRATCH": tmp_path / "scratch",
        } | settings
        environment = inherited() | {f"MADPO_GATEWAY_{name}": str(value) for name, value in values.items()}
        environment["MADPO_SECRETS_DIR"] = str(tmp_path / "secrets")
        with (tmp_path / "gateway.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "madpo_gateway"], env=environment, stdout=log, stderr=log)
        processes.append(process)
        deadline = time.monotonic() + 60
        while not listens(unused_tcp_port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail((tmp_path / "gateway.log").read_text())
            time.sleep(0.05)
        return Gateway(unused_tcp_port, token_file)

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def refused(client: Client) -> MadpoError:
    with client, pytest.raises(MadpoError) as caught:
        client.jobs.list()
    return caught.value


def test_a_client_reaches_a_gateway_by_tls_and_is_told_why_not(
    gateway: Callable[..., Gateway], ours: Path, others: Path
) -> None:
    door = gateway(TLS_CERT=ours / "gateway.crt", TLS_KEY=ours / "gateway.key")

    for host in ("localhost", "0.0.0.0"):
        with door.client(host, tls_ca=ours / "ca.crt") as client:
            assert list(client.jobs.list()) == []
    for untrusting in (door.client("0.0.0.0"), door.client("localhost", tls_ca=others / "ca.crt")):
        error = refused(untrusting)
        assert isinstance(error, FailedPreconditionError)
        assert str(error).endswith("is of an authority that is not trusted here; name that (tls_ca)")
    plain = refused(door.client("0.0.0.0", plaintext=True))
    assert "hangs up at once: it stops just now, or it serves TLS (tls_ca)" in str(plain)


def test_a_gateway_may_ask_clients_for_a_certificate(gateway: Callable[..., Gateway], ours: Path) -> None:
    door = gateway(TLS_CERT=ours / "gateway.crt", TLS_KEY=ours / "gateway.key", TLS_CLIENT_CA=ours / "ca.crt")
    tls = {"tls_ca": ours / "ca.crt", "tls_cert": ours / "client.crt", "tls_key": ours / "client.key"}

    with door.client("localhost", **tls) as client:
        assert list(client.jobs.list()) == []
    assert "(tls_cert)" in str(refused(door.client("localhost", tls_ca=ours / "ca.crt")))


def test_plain_text_to_another_machine_wants_to_be_asked_for(gateway: Callable[..., Gateway]) -> None:
    door = gateway(ALLOW_PLAINTEXT="true")

    with door.client("0.0.0.0", plaintext=True) as client:
        assert list(client.jobs.list()) == []
    error = refused(door.client("0.0.0.0"))
    assert isinstance(error, FailedPreconditionError)
    assert "it speaks plain text" in str(error)


def test_the_command_line_says_it_in_one_line(gateway: Callable[..., Gateway], ours: Path, others: Path) -> None:
    door = gateway(TLS_CERT=ours / "gateway.crt", TLS_KEY=ours / "gateway.key")
    server = ["--server", f"localhost:{door.port}", "--token-file", str(door.token_file)]

    def madpo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "madpo_client.cli", *server, *arguments]
        return subprocess.run(command, env=inherited(), capture_output=True, text=True, timeout=60)

    listed = madpo("--tls-ca", str(ours / "ca.crt"), "job", "list", "--json")
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "[]\n", "")
    failed = madpo("--tls-ca", str(others / "ca.crt"), "job", "list")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)
    assert failed.stderr.startswith(f"error: no TLS with the gateway at localhost:{door.port}: its certificate is of")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plaintext": True, "tls_ca": Path("ca.crt")}, "plaintext excludes tls_ca"),
        ({"tls_cert": Path("client.crt")}, "tls_cert and tls_key come together"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        Client("gpu-host:50050", token="t", **options)


def test_an_authority_that_cannot_be_read_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match=r"/nonexistent/ca\.crt cannot be read"):
        Client("gpu-host:50050", token="t", tls_ca=Path("/nonexistent/ca.crt"))


def test_certificates_may_be_named_by_text(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"ca\.crt"):
        Client("gateway.example.org:1", token="t", tls_ca=str(tmp_path / "ca.crt"))
