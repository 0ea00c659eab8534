"""Homes of stacks: open, old, incomplete, and of other versions."""

import json
import stat
from pathlib import Path

import pytest

from madpo.errors import FailedPreconditionError
from madpo_client.embedded.home import check_home, close_home
from madpo_client.embedded.plan import read_secret


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def used(home: Path) -> Path:
    """A home that was in use."""
    close_home(home)
    check_home(home)
    for name in ("client_token", "reward_token", "redis_password"):
        read_secret(home, name)
    return home


def test_a_home_is_made_closed(tmp_path: Path) -> None:
    assert close_home(tmp_path / "a" / "home") == []
    assert mode(tmp_path / "a" / "home") == 0o700


@pytest.mark.parametrize("open_mode", [0o755, 0o750, 0o701, 0o777])
@pytest.mark.parametrize("kind", ["used", "empty", "with profiles"])
def test_a_home_that_others_can_read_is_closed_and_said(tmp_path: Path, open_mode: int, kind: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if kind == "used":
        used(home)
    elif kind == "with profiles":
        (home / "config.toml").touch()
    home.chmod(open_mode)
    assert close_home(home) == [f"{home} was open to other users (mode {open_mode:04o}): closed"]
    assert mode(home) == 0o700
    assert close_home(home) == []


def test_an_open_directory_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(FailedPreconditionError, match=f"chmod 700 {tmp_path}"):
        close_home(tmp_path)
    assert mode(tmp_path) == 0o755


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(FailedPreconditionError, match="no directory"):
        close_home(tmp_path / "home")
    with pytest.raises(FailedPreconditionError, match="no directory"):
        close_home(tmp_path / "home" / "below")


def test_a_whole_home_gives_no_notice(tmp_path: Path) -> None:
    assert check_home(tmp_path) == []
    assert check_home(used(tmp_path)) == []


@pytest.mark.parametrize("name", ["store", "redis"])
def test_what_is_missing_is_made_and_said(tmp_path: Path, name: str) -> None:
    home = used(tmp_path)
    (home / name).rmdir()
    (notice,) = check_home(home)
    assert f"{home / name} is missing" in notice
    assert (home / name).is_dir()


@pytest.mark.parametrize("name", ["store", "redis", "work", "cache", "cache/reward", "logs", "secrets"])
def test_what_is_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(FailedPreconditionError, match=f"{tmp_path / name} is in the way"):
        check_home(tmp_path)


def test_a_secret_that_was_cut_short_is_made_anew_and_said(tmp_path: Path) -> None:
    home = used(tmp_path)
    whole = read_secret(home, "reward_token")
    (home / "secrets" / "client_token").write_text("")
    (notice,) = check_home(home)
    assert "client_token was cut short" in notice
    assert len(read_secret(home, "client_token")) == 64
    assert read_secret(home, "reward_token") == whole


def test_a_home_of_a_newer_madpo_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    home = used(tmp_path)
    left = json.dumps({"format": 2, "madpo": "9.1.0"})
    (home / "version.json").write_text(left)
    with pytest.raises(FailedPreconditionError, match=r"left by madpo 9\.1\.0 in format 2"):
        check_home(home)
    assert (home / "version.json").read_text() == left


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (json.dumps({"format": 1, "madpo": "0.0.9"}), "left by madpo 0.0.9"),
        ("", "could not be read"),
        ("[]", "could not be read"),
        ('{"format": "x"}', "could not be read"),
    ],
)
def test_another_version_is_said_once(tmp_path: Path, left: str, said: str) -> None:
    home = used(tmp_path)
    (home / "version.json").write_text(left)
    (notice,) = check_home(home)
    assert said in notice
    assert check_home(home) == []


def test_a_home_of_before_versions_is_taken(tmp_path: Path) -> None:
    home = used(tmp_path)
    (home / "version.json").unlink()
    assert check_home(home) == []
