from pathlib import Path

import pytest

from madpo.config import ServiceSettings, load_settings
from madpo.errors import InvalidArgumentError, NotFoundError
from madpo_client.secrets_directory import SECRETS, prepare
from madpo_client.settings import client_settings
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


def test_init_makes_private_files_once(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    token = (tmp_path / "secrets" / "client_token").read_text()
    (tmp_path / "secrets" / "redis_password").unlink()

    second = prepare(tmp_path)

    assert {path.name for path in first.made} == {*SECRETS, ".env"}
    assert [path.name for path in second.made] == ["redis_password"]
    assert (tmp_path / "secrets" / "client_token").read_text() == token
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in first.made} == {0o600}
    values = [(tmp_path / "secrets" / name).read_text() for name in SECRETS]
    assert len(set(values)) == len(SECRETS)
    assert min(map(len, values)) >= 20
    assert not any(value in (tmp_path / ".env").read_text() for value in values)


def test_a_profile_fills_in_what_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADPO_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[profiles.lab]\nserver = "gpu:50050"\ntoken_file = "lab.token"\n')

    assert client_settings(profile="lab").server == "gpu:50050"
    assert client_settings(profile="lab", server="other:1").server == "other:1"
    monkeypatch.setenv("MADPO_SERVER", "environment:2")
    assert client_settings(profile="lab").server == "environment:2"
    assert client_settings(profile="lab").token_file == Path("lab.token")
    with pytest.raises(NotFoundError, match=r"profiles\.none"):
        client_settings(profile="none")
    (tmp_path / "config.toml").write_text('[profiles.lab]\nsever = "gpu:50050"\n')
    with pytest.raises(InvalidArgumentError, match="sever"):
        client_settings(profile="lab")
