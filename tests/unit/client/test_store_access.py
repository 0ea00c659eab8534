"""Which store the commands without a gateway work on."""

from pathlib import Path

import pytest

from madpo.errors import InvalidArgumentError
from madpo_client.store_access import find_store


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MADPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_option_of_a_service_is_no_word_of_where_its_store_is(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MADPO_TRAINER_SPARE_S", "0")

    assert find_store(None).home == home


def test_a_service_may_be_told_its_store_in_a_secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"SCRATCH": "scratch", "REDIS_URL": "redis://queue", "TOKEN": "t" * 32}.items():
        monkeypatch.setenv(f"MADPO_GATEWAY_{name}", value)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "madpo_gateway_store_url").write_text(f"file://{tmp_path}/store")
    monkeypatch.setenv("MADPO_SECRETS_DIR", str(secrets))

    access = find_store(None)

    assert (access.home, access.settings.store_url) == (None, f"file://{tmp_path}/store")


def test_a_service_with_a_store_is_set_up_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADPO_GATEWAY_STORE_URL", "file:///store")

    with pytest.raises(InvalidArgumentError, match="MADPO_GATEWAY_REDIS_URL"):
        find_store(None)
