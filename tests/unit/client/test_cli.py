"""The `madpo` command: what it says when something is wrong, and what needs no gateway."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from madpo.calibration.report import (
    CalibrationReport,
    HeldOut,
    Margins,
    ScaleChoice,
    SectionScore,
    SubsetAccuracy,
    Subsets,
    TemperatureChoice,
    Weights,
)
from madpo.losses.registry import METHODS
from madpo_client.cli import app
from madpo_client.cli.calibrate import show_report
from tests.unit.client.conftest import Command

MODEL_ID = "model-" + "1" * 32
DATASET_ID = "dataset-" + "2" * 32


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
        (("train", "reward", "--param", "tau=1", "--model", "m", "--dataset", "d"), "No such option: --param"),
        (("train", "policy", "--param", "tau", "--model", "m", "--dataset", "d"), "write NAME=VALUE"),
        (("train", "reward", "--spec", "a.json", "--epochs", "1"), "--spec says everything"),
        (("evaluate", "--spec", "a.json", "--model", "m"), "--spec says everything"),
        (("train", "policy", "--method", "dpo"), "give --model and --dataset, or --spec"),
        (("evaluate", "--model", "m"), "give --prompts, or --spec"),
        (("calibrate",), "give --eval-dataset, or --spec"),
        (("calibrate", "--eval-dataset", "d", "--no-wait", "--out", "o"), "need the result"),
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
        (("--model", DATASET_ID, "--dataset", DATASET_ID), "error: --model: "),
        (("--model", MODEL_ID, "--dataset", MODEL_ID), "error: --dataset: "),
        (
            ("--model", MODEL_ID, "--dataset", DATASET_ID, "--max-steps", "0"),
            "error: --max-steps: must be an integer in [1, 10000000]",
        ),
        (
            ("--model", MODEL_ID, "--dataset", DATASET_ID, "--epochs", "many"),
            "error: --epochs: must be a number in (0, 10000], got 'many'",
        ),
        (("--model", MODEL_ID, "--dataset", DATASET_ID, "--eval-dataset", ""), "error: --eval-dataset: "),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eval-dataset", MODEL_ID), "error: --eval-dataset: "),
        (
            ("--eval-dataset", DATASET_ID, "--temperature", "warm"),
            'error: --temperature: must be a number > 0, or "fit"',
        ),
        (("--eval-dataset", DATASET_ID, "--reward-model", DATASET_ID), "error: --reward-model: "),
        (("--dataset", MODEL_ID), f"error: --dataset: must be a DATASET_ID or a JOB_ID, got '{MODEL_ID}'"),
    ],
)
def test_a_wrong_calibration_is_named_without_a_gateway(
    madpo: Command, closed: str, arguments: tuple[str, ...], message: str
) -> None:
    done = madpo("--server", closed, "calibrate", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_a_calibration_is_shown_as_a_table_with_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    margins = Margins(
        of="held_out", pairs=8, mean=0.5, std=1.0, contradicted_ratio=0.25,
        absolute_quantiles={"0.5": 1.25}, edges=(-1.0, 0.0, 2.0), counts=(2, 6),
    )  # fmt: skip
    held_out = HeldOut(
        pairs=8, accuracy=0.75, contradicted_ratio=0.25, loss=0.5, ece=0.125, temperature=1.7, temperature_low=0.9,
        temperature_high=None, temperature_fitted=True, ece_used=0.1, reliability=(),
    )  # fmt: skip
    report = CalibrationReport(
        method="madpo",
        params={},
        temperature=TemperatureChoice(given=1.0, value=1.0, rule="given"),
        scales={"tau": ScaleChoice(given="auto", value=11.74, rule="temperature", beyond_ratio=0.0)},
        held_out=held_out,
        margins=margins,
        weights=Weights(mean=0.9, quantiles={"0": 0.1, "1": 1.2}, reward_margin=(), weight=()),
        suggested_tau=11.74,
        warnings=("look out",),
    )

    show_report(report)

    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        "held-out pairs 8",
        "accuracy 75.0%",
        "ECE 0.125; 0.100 as used",
        "temperature 1.70 (95 % interval 0.90 to unbounded)",
        "margins divided by 1 (given)",
        "contradicted 25.0% of 8 held-out pairs",
        "|margin| quantiles 50%: 1.25",
        "99.9 % sure at 11.7 (tau=auto)",
        "tau 11.7 (temperature); 0.0% of |margin| are larger",
        "weights of madpo mean 0.9, 0%: 0.1 100%: 1.2",
        "warning: look out",
    ]

    part = SubsetAccuracy(accuracy=0.75, ci=(0.5, 0.9), pairs=1200, ties=2)
    chat = SectionScore(accuracy=0.75, ci=(0.5, 0.9))
    show_report(
        report.model_copy(update={"subsets": Subsets(subsets={"mine": part}, sections={"Chat": chat}, score=chat)})
    )

    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed[-6:-1] == [
        "by part",
        "part accuracy 95 % interval pairs ties",
        "mine 75.0% 50.0% to 90.0% 1,200 2",
        "Chat 75.0% 50.0% to 90.0%",
        "mean of sections 75.0% 50.0% to 90.0%",
    ]


def test_an_upload_of_a_file_that_is_not_there_names_it(madpo: Command, closed: str) -> None:
    done = madpo("--server", closed, "dataset", "upload", "pairs.csv")
    assert (done.returncode, "cannot read pairs.csv" in done.stderr) == (1, True)


def test_methods_lists_the_registry(madpo: Command) -> None:
    listed = json.loads(madpo("methods", "--json").stdout)
    assert [method["name"] for method in listed] == list(METHODS)
    assert "margin" in next(method["needs"] for method in listed if method["name"] == "madpo")
    assert len(listed) >= 36
    lines = madpo("methods").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert {line.split()[0] for line in lines if line[:1].strip()} == {"name", *METHODS}
    shown = madpo("methods", "show", "madpo").stdout
    for text in (
        METHODS["madpo"].source,
        "c_min = 0.5   > 0, <= 1",
        "evidence  code: the formula agrees with published",
    ):
        assert text in shown
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


def commands_of(group: Any, path: str = "madpo") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_that_prints_does_so_as_json_on_request() -> None:
    # These say nothing of their own, or speak JSON or a log's own lines alone.
    others = {"madpo down", "madpo demo", "madpo methods eval", "madpo job logs"}
    without = {
        path
        for path, command in commands_of(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without <= others


def test_the_version_is_that_of_the_package(madpo: Command) -> None:
    done = madpo("--version")
    assert (done.returncode, done.stdout) == (0, f"madpo {version('madpo')}\n")


@pytest.mark.parametrize(
    ("typed", "meant"), [(("jb",), "job"), (("job", "lst"), "list"), (("train", "polcy"), "policy")]
)
def test_a_command_that_there_is_not_is_refused_with_what_may_be_meant(
    madpo: Command, typed: tuple[str, ...], meant: str
) -> None:
    done = madpo(*typed)
    assert (done.returncode, f"Did you mean '{meant}'?" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        (("--method", "madp"), "there is no method 'madp'; did you mean madpo"),
        (("--kind", "polcy"), "there is no job kind 'polcy'"),
        (("--state", "done"), "'done' is not one of"),
        (("--since", "yesterday"), "a span such as 90m"),
    ],
)
def test_a_filter_that_no_job_can_match_is_a_usage_error(
    madpo: Command, closed: str, filter_: tuple[str, str], message: str
) -> None:
    done = madpo("--server", closed, "job", "list", *filter_)
    assert (done.returncode, message in " ".join(done.stderr.replace("│", " ").split())) == (2, True), done.stderr
    assert (
        madpo("--server", closed, "job", "list", "--kind", "policy", "--state", "failed").returncode == 1
    )  # no gateway
