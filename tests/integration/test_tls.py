"""Real handshakes on loopback, with certificates made by the script users run."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import ServiceSettings
from madpo.errors import DeadlineExceededError, FailedPreconditionError, UnavailableError
from madpo.rpc.health import check_serving
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.rpc.tls import ClientTls
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceServicer, add_RewardServiceServicer_to_server

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_ca.sh"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    for name in ("ours", "others"):
        subprocess.run(["bash", SCRIPT, directory / name, "gpu-host", "10.1.2.3"], check=True, capture_output=True)
    return directory


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


def served(certificates: Path, *, mutual: bool, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    ours = certificates / "ours"
    settings = ServiceSettings(
        host=host,
        port=port,
        tls_cert=ours / "reward.crt",
        tls_key=ours / "reward.key",
        tls_client_ca=ours / "ca.crt" if mutual else None,
    )
    return RunningServer(Scorer(), settings, token="t" * 20, registry=CollectorRegistry())


async def ask(server: RunningServer, tls: ClientTls | None) -> str:
    target = f"127.0.0.1:{server.port}"
    async with RewardClient(target, token="t" * 20, tls=tls, timeout_s=2, load_timeout_s=2) as client:
        return (await client.get_reward_model("model-" + "0" * 32)).revision


async def test_a_client_that_trusts_the_authority_gets_its_answer(certificates: Path) -> None:
    async with served(certificates, mutual=False) as server:
        assert await ask(server, ClientTls(certificates / "ours" / "ca.crt")) == "r1"


@pytest.mark.parametrize("trust", ["others", "plain text"])
async def test_another_authority_and_plain_text_are_refused(certificates: Path, trust: str) -> None:
    tls = None if trust == "plain text" else ClientTls(certificates / trust / "ca.crt")
    async with served(certificates, mutual=False) as server:
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await ask(server, tls)


async def test_mutual_tls_lets_in_only_holders_of_our_certificates(certificates: Path) -> None:
    ours, others = certificates / "ours", certificates / "others"
    async with served(certificates, mutual=True) as server:
        trainer = ClientTls(ours / "ca.crt", ours / "trainer.crt", ours / "trainer.key")
        stranger = ClientTls(ours / "ca.crt", others / "trainer.crt", others / "trainer.key")

        assert await ask(server, trainer) == "r1"
        for refused in (ClientTls(ours / "ca.crt"), stranger):
            with pytest.raises((UnavailableError, DeadlineExceededError)):
                await ask(server, refused)


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_service_answers_its_own_health_check(certificates: Path, mutual: bool) -> None:
    import asyncio

    async with served(certificates, mutual=mutual) as server:
        settings = server._settings.model_copy(update={"port": server.port})
        await asyncio.to_thread(check_serving, settings)
        await asyncio.to_thread(check_serving, settings.model_copy(update={"host": "0.0.0.0"}))
        await server._set_health(2)
        with pytest.raises(UnavailableError, match="NOT_SERVING"):
            await asyncio.to_thread(check_serving, settings)
    with pytest.raises(UnavailableError, match="does not answer"):
        await asyncio.to_thread(check_serving, settings)


def test_the_health_command_says_why_in_one_line(tmp_path: Path) -> None:
    environment = {
        "MADPO_REWARD_STORE_URL": tmp_path.as_uri(),
        "MADPO_REWARD_CACHE": str(tmp_path),
        "MADPO_REWARD_PORT": "1",
        "PATH": "/usr/bin:/bin",
    }
    code = "import sys; sys.argv = ['x', 'health']; import runpy\n"
    code += "try: runpy.run_module('madpo_reward', run_name='__main__')\n"
    code += "except SystemExit as end: print('torch' in sys.modules); raise\n"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stdout.strip() == "False"
    assert done.stderr.startswith("reward: 127.0.0.1:1 does not answer")
    assert len(done.stderr.splitlines()) == 1


async def test_files_that_do_not_fit_are_named(certificates: Path, tmp_path: Path) -> None:
    ours, others = certificates / "ours", certificates / "others"
    (tmp_path / "no.crt").write_text("not a certificate")
    for cert, key in ((ours / "reward.crt", others / "reward.key"), (tmp_path / "no.crt", ours / "reward.key")):
        settings = ServiceSettings(tls_cert=cert, tls_key=key)
        with pytest.raises(FailedPreconditionError, match="no certificate with its key"):
            await RunningServer(Scorer(), settings, registry=CollectorRegistry()).start()
    with pytest.raises(FailedPreconditionError, match=r"away\.crt cannot be read"):
        ClientTls(tmp_path / "away.crt").credentials()


def test_the_script_keeps_what_is_there_and_names_the_gateway(certificates: Path) -> None:
    ours = certificates / "ours"
    before = (ours / "gateway.crt").read_bytes()
    subprocess.run(["bash", SCRIPT, ours], check=True, capture_output=True)
    text = subprocess.run(
        ["openssl", "x509", "-in", ours / "gateway.crt", "-noout", "-text"], check=True, capture_output=True, text=True
    ).stdout

    assert (ours / "gateway.crt").read_bytes() == before
    assert "DNS:gpu-host" in text
    assert "IP Address:10.1.2.3" in text
    assert (ours / "gateway.key").stat().st_mode & 0o777 == 0o600
