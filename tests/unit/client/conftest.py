"""Runs the `madpo` command in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from madpo_client.cli import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def madpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command; no stack and no gateway is known but those a test names."""
    for name in ("MADPO_SERVER", "MADPO_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MADPO_HOME": "/nonexistent", "NO_COLOR": "1", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["madpo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def closed(unused_tcp_port: int) -> str:
    """A server address nobody listens on."""
    return f"127.0.0.1:{unused_tcp_port}"
