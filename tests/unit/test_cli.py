"""The `madpo` command: what it says when something is wrong, and what needs no gateway."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from madpo.losses.registry import METHODS
from madpo_client.cli import main

MODEL_ID = "model-" + "1" * 32
DATASET_ID = "dataset-" + "2" * 32


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


def test_a_closed_port_is_one_line_and_exit_code_1(madpo: Command, closed: str) -> None:
    done = madpo("--server", closed, "job", "list")
    assert done.stderr == f"error: no madpo gateway at {closed}; start one with `madpo up` or set MADPO_SERVER\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_the_environment_names_the_server(madpo: Command, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADPO_SERVER", closed)
    done = madpo("dataset", "list")
    assert f"no madpo gateway at {closed}" in done.stderr
    assert done.returncode == 1


def test_without_a_server_and_a_stack_the_ways_to_get_one_are_named(madpo: Command) -> None:
    done = madpo("model", "list")
    assert done.stderr == "error: no madpo gateway is known; start one with `madpo up` or set MADPO_SERVER\n"
    assert done.returncode == 1


def test_a_missing_token_file_is_named(madpo: Command, closed: str) -> None:
    done = madpo("--server", closed, "--token-file", "/nonexistent/token", "job", "list")
    assert done.stderr == "error: cannot read the token file /nonexistent/token: No such file or directory\n"


def test_a_wrong_option_is_a_usage_error(madpo: Command, closed: str) -> None:
    assert madpo("job", "list", "--nonsense").returncode == 2
    assert madpo("train", "magic").returncode == 2
    assert madpo("--server", closed, "train", "reward", "--model", MODEL_ID).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "reward", "--param", "tau=1", "--model", "m", "--dataset", "d"), "belong to `madpo train policy`"),
        (("train", "policy", "--param", "tau", "--model", "m", "--dataset", "d"), "write NAME=VALUE"),
        (("train", "reward", "--spec", "a.json", "--epochs", "1"), "--spec says everything"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(
    madpo: Command, closed: str, arguments: tuple[str, ...], message: str
) -> None:
    done = madpo("--server", closed, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gpt2", "--dataset", DATASET_ID), "model.model_id"),
        (("--model", MODEL_ID, "--dataset", "pairs.jsonl"), "spec.reward_training.dataset_id"),
        (("--model", MODEL_ID, "--dataset", DATASET_ID, "--max-steps", "0"), "spec.reward_training.training.max_steps"),
        (("--spec", "/nonexistent/spec.json"), "cannot read /nonexistent/spec.json: No such file"),
    ],
)
def test_a_wrong_value_is_named_without_a_gateway(
    madpo: Command, closed: str, arguments: tuple[str, ...], message: str
) -> None:
    done = madpo("--server", closed, "train", "reward", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_spec_that_is_no_json_is_refused(madpo: Command, closed: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("model: x")
    done = madpo("--server", closed, "train", "reward", "--spec", str(tmp_path / "spec.json"))
    assert (done.returncode, "is no JSON" in done.stderr) == (1, True)


def test_an_upload_of_a_file_of_unknown_format_asks_for_it(madpo: Command, closed: str) -> None:
    done = madpo("--server", closed, "dataset", "upload", "pairs.csv")
    assert (done.returncode, "say format='jsonl' or 'parquet'" in done.stderr) == (1, True)


def test_methods_lists_the_registry(madpo: Command) -> None:
    listed = json.loads(madpo("methods", "--json").stdout)
    assert [method["name"] for method in listed] == list(METHODS)
    assert "margin" in next(method["needs"] for method in listed if method["name"] == "madpo")
    shown = madpo("methods", "show", "madpo").stdout
    assert METHODS["madpo"].source in shown
    assert "tau" in shown
    assert madpo("methods", "show", "nonsense").returncode == 1


def test_an_unknown_demo_is_refused_by_the_names_there_are(madpo: Command, tmp_path: Path) -> None:
    done = madpo("demo", "nonsense", "--out", str(tmp_path / "out"))
    assert (done.returncode, "toy-reviews" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_status_of_no_stack_is_exit_code_1(madpo: Command, tmp_path: Path) -> None:
    done = madpo("status", "--home", str(tmp_path))
    assert (done.returncode, done.stdout) == (
        1,
        f"no madpo stack runs under {tmp_path}; start one with `madpo up`\n",
    )
    assert madpo("status", "--home", str(tmp_path), "--json").stdout == "[]\n"
    assert madpo("down", "--home", str(tmp_path)).returncode == 0
