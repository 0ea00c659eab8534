"""Settings: where they come from, and what refuses to start."""

from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from madpo.config import ServiceSettings, load_settings
from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, NotFoundError
from madpo.queue.queue import open_queue
from madpo.rpc.channel import is_loopback
from madpo_client.secrets_directory import SECRETS, prepare
from madpo_client.settings import ConnectionOptions, client_settings
from madpo_gateway.settings import GatewaySettings
from madpo_trainer.settings import TrainerSettings


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("MADPO_SECRETS_DIR", str(tmp_path))
    return {"store_url": "file:///tmp/x", "redis_url": "redis://h:1/0", "workspace": tmp_path}


def test_a_secret_file_holds_one_value(tmp_path: Path, trainer: dict[str, object]) -> None:
    (tmp_path / "madpo_trainer_redis_password").write_text("from a file\n")
    (tmp_path / "madpo_reward_token").write_text("of another service")

    settings = load_settings(TrainerSettings, **trainer)

    assert settings.redis_password is not None
    assert settings.redis_password.get_secret_value() == "from a file"
    assert "from a file" not in str(settings.resolved())


def test_the_environment_wins_over_a_secret_file_and_that_over_the_toml_file(
    tmp_path: Path, trainer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = tmp_path / "madpo.toml"
    toml.write_text('redis_password = "toml"\nreward_token = "toml"\ns3_region = "toml"\n')
    (tmp_path / "madpo_trainer_redis_password").write_text("file")
    (tmp_path / "madpo_trainer_reward_token").write_text("file")
    monkeypatch.setenv("MADPO_CONFIG_FILE", str(toml))
    monkeypatch.setenv("MADPO_TRAINER_REDIS_PASSWORD", "environment")

    settings = load_settings(TrainerSettings, **trainer)

    assert settings.redis_password is not None
    assert settings.reward_token is not None
    assert settings.redis_password.get_secret_value() == "environment"
    assert settings.reward_token.get_secret_value() == "file"
    assert settings.s3_region == "toml"


def test_a_certificate_comes_with_its_key() -> None:
    with pytest.raises(InvalidArgumentError, match="tls_cert and tls_key come together"):
        load_settings(ServiceSettings, tls_cert=Path("x.crt"))
    with pytest.raises(InvalidArgumentError, match="tls_client_ca needs tls_cert"):
        load_settings(ServiceSettings, tls_client_ca=Path("ca.crt"))


def test_a_gateway_listens_beyond_loopback_only_with_tls_or_leave(tmp_path: Path) -> None:
    fields = {
        "store_url": "file:///tmp/x",
        "redis_url": "redis://h:1/0",
        "token": "t" * 32,
        "scratch": tmp_path,
        "host": "0.0.0.0",
    }
    with pytest.raises(InvalidArgumentError, match="MADPO_GATEWAY_TLS_CERT"):
        load_settings(GatewaySettings, **fields)
    assert load_settings(GatewaySettings, **fields, allow_plaintext=True)
    assert load_settings(GatewaySettings, **fields, tls_cert=Path("x"), tls_key=Path("y"))


def test_a_secret_file_of_somebody_else_is_named(
    tmp_path: Path, trainer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "madpo_trainer_redis_password"
    secret.write_text("file")

    def refuse(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InvalidArgumentError, match=f"{secret} cannot be read: Permission denied"):
        load_settings(TrainerSettings, **trainer)


def test_a_secrets_directory_that_is_not_there_is_named(
    tmp_path: Path, trainer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADPO_SECRETS_DIR", str(tmp_path / "away"))
    with pytest.raises(InvalidArgumentError, match=f"MADPO_SECRETS_DIR is {tmp_path}/away"):
        load_settings(TrainerSettings, **trainer)


async def test_the_password_of_the_queue_may_stand_beside_its_url(
    trainer: dict[str, object], redis_process: Any
) -> None:
    with Redis.from_url(redis_process.url) as server:
        server.config_set("requirepass", "hush-hush")
    given = trainer | {"redis_url": redis_process.url}

    queue = open_queue(load_settings(TrainerSettings, **given, redis_password="hush-hush"))
    await queue.ping()
    await queue.close()

    queue = open_queue(load_settings(TrainerSettings, **given))
    with pytest.raises(MadpoError):
        await queue.ping()
    await queue.close()


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "127.0.0.2:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.1:2"],
)
def test_targets_on_this_machine(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "gpu:1",
        "0.0.0.0:1",
        "[fd00::1]:1",
        "[::1",
        "127.0.0.1.example.org:1",
        "localhost.example.org:1",
        "dns:///reward:1",
        "ipv4:127.0.0.1:1,10.0.0.2:1",
    ],
)
def test_targets_elsewhere(target: str) -> None:
    assert not is_loopback(target)


# ---- madpo init


def test_init_makes_private_files_once(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    token = (tmp_path / "secrets" / "client_token").read_text()
    (tmp_path / "secrets" / "redis_password").unlink()

    second = prepare(tmp_path)

    assert {path.name for path in first.made} == {*SECRETS, ".env"}
    assert [path.name for path in second.made] == ["redis_password"]
    assert {path.name for path in second.kept} == {*SECRETS, ".env"} - {"redis_password"}
    assert (tmp_path / "secrets" / "client_token").read_text() == token
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in first.made} == {0o600}
    values = [(tmp_path / "secrets" / name).read_text() for name in SECRETS]
    assert len(set(values)) == len(SECRETS)
    assert min(map(len, values)) >= 20
    assert not any(value != value.strip() for value in values)
    assert not any(value in (tmp_path / ".env").read_text() for value in values)


def test_the_containers_run_as_the_owner_of_the_secrets(tmp_path: Path) -> None:
    prepare(tmp_path)

    values = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines() if "=" in line)
    assert values["MADPO_SECRETS_DIR"] == str(tmp_path / "secrets")
    assert values["MADPO_UID"] != "0"
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "secrets").iterdir()}
    assert owners == {(int(values["MADPO_UID"]), int(values["MADPO_GID"]))}


def test_a_directory_with_a_space_is_quoted_and_one_with_a_quote_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "my host")
    assert f"MADPO_SECRETS_DIR='{tmp_path}/my host/secrets'\n" in (tmp_path / "my host" / ".env").read_text()
    with pytest.raises(InvalidArgumentError, match="choose another directory"):
        prepare(tmp_path / "it's")
    assert not (tmp_path / "it's").exists()


def test_an_environment_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=80\n")
    with pytest.raises(FailedPreconditionError, match="does not set MADPO_SECRETS_DIR, MADPO_UID"):
        prepare(tmp_path)
    assert (tmp_path / ".env").read_text() == "PORT=80\n"


# ---- profiles


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one profile; the environment names nothing."""
    for name in ConnectionOptions.__annotations__:
        monkeypatch.delenv(f"MADPO_{name.upper()}", raising=False)
    monkeypatch.setenv("MADPO_HOME", str(tmp_path))
    path = tmp_path / "config.toml"
    path.write_text('[profiles.lab]\nserver = "gpu:50050"\ntoken_file = "lab.token"\n')
    return path


def test_a_profile_fills_in_what_was_not_given(profiles: Path) -> None:
    assert client_settings(profile="lab").server == "gpu:50050"
    other = client_settings(profile="lab", server="other:1")
    assert (other.server, other.token_file) == ("other:1", Path("lab.token"))


def test_a_profile_that_was_asked_for_wins_over_the_environment(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADPO_SERVER", "environment:2")
    monkeypatch.setenv("MADPO_TLS_CA", "environment.crt")
    lab = client_settings(profile="lab")
    assert (lab.server, lab.token_file, lab.tls_ca) == ("gpu:50050", Path("lab.token"), Path("environment.crt"))


def test_the_environment_wins_over_a_profile_it_names_itself(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADPO_PROFILE", "lab")
    assert client_settings().server == "gpu:50050"
    monkeypatch.setenv("MADPO_SERVER", "environment:2")
    assert client_settings().server == "environment:2"
    assert client_settings(server="option:3").server == "option:3"
    assert client_settings().token_file == Path("lab.token")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("[profiles.home]\nserver = 'h:1'\n", NotFoundError, r"no \[profiles\.lab\]; it has: home"),
        ("[profiles.lab]\nserver = 'h:1'\nsever = 'h:1'\n", InvalidArgumentError, "has sever; a profile has plaintext"),
        ("[profiles.lab]\ntoken_file = 'x'\n", InvalidArgumentError, "names no server"),
        ("[profiles.lab]\nserver = 'h:1'\nplaintext = 'perhaps'\n", InvalidArgumentError, "plaintext: Input should be"),
        ("[profiles.lab\n", InvalidArgumentError, r"config\.toml cannot be read"),
        ("profiles = 3\n", NotFoundError, "it has: none"),
    ],
)
def test_a_wrong_profile_is_named(profiles: Path, text: str, error: type[MadpoError], said: str) -> None:
    profiles.write_text(text)
    with pytest.raises(error, match=said):
        client_settings(profile="lab")


def test_a_profile_without_a_file_and_a_wrong_variable_are_named(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.unlink()
    with pytest.raises(NotFoundError, match=r"there is no .*config\.toml"):
        client_settings(profile="lab")
    monkeypatch.setenv("MADPO_PLAINTEXT", "perhaps")
    with pytest.raises(InvalidArgumentError, match="plaintext: Input should be a valid boolean"):
        client_settings()
