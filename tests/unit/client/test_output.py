"""Tables on terminals of every width, and in pipes."""

import re
from collections.abc import Callable
from typing import cast

import pytest

from madpo.evaluation.report import (
    Accuracy,
    Comparison,
    Estimate,
    EvaluatedModel,
    EvaluationReport,
    EvaluationResult,
    Judged,
    JudgeUse,
)
from madpo.jobs.sampling import SamplingParameters
from madpo.types import Job, JobKind, JobProgress, JobResult, JobState
from madpo_client.cli.evaluation import show_evaluation
from madpo_client.cli.job_list import describe_progress, job_columns
from madpo_client.cli.output import Column, show, size_text, table
from madpo_client.cli.spans import parse_since, parse_size
from madpo_client.client import Client

ID = "job-" + "1" * 32
ROWS = [
    {"id": ID, "name": "a name of some length", "state": "failed", "why": "the loss is not finite: lower the rate"},
    {"id": ID.replace("1", "2"), "name": "b", "state": "succeeded", "why": ""},
]
COLUMNS = (
    Column("job", lambda row: row["id"]),
    Column("name", lambda row: row["name"], rank=1, shortest=8),
    Column("state", lambda row: row["state"], rank=2),
    Column("empty", lambda row: None, rank=2),
    Column("reason", lambda row: row["why"], rank=3, shortest=10),
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[int | None], list[str]]:
    """What a terminal of some width shows, or a pipe."""

    def shown(width: int | None) -> list[str]:
        monkeypatch.setenv("NO_COLOR", "1")
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("TERM", "xterm")
        table(ROWS, COLUMNS, as_json=False)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 110, 200, None])
def test_ids_are_whole_at_every_width_and_lines_fit(
    lines: Callable[[int | None], list[str]], width: int | None
) -> None:
    shown = lines(width)
    assert len(shown) == 3
    assert [line.split()[0] for line in shown[1:]] == [row["id"] for row in ROWS]
    assert all(len(line) <= max(width or 1000, len(ID)) for line in shown)


def test_the_least_important_columns_go_first_and_texts_give_way_before(
    lines: Callable[[int | None], list[str]],
) -> None:
    assert lines(200)[0].split() == ["job", "name", "state", "empty", "reason"]
    assert lines(80)[0].split() == ["job", "name", "state", "empty", "reason"]
    assert lines(80)[1].endswith("…")
    assert lines(74)[0].split() == ["job", "name", "state", "reason"]  # what says nothing goes before anything else
    assert lines(60)[0].split() == ["job", "name", "state"]
    assert lines(46)[0].split() == ["job", "name"]
    assert lines(40)[0].split() == ["job"]


def test_what_is_piped_is_plain_and_whole(lines: Callable[[int | None], list[str]]) -> None:
    assert lines(None)[1] == f"{ID}  a name of some length  failed            the loss is not finite: lower the rate"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (936_306, "936 kB"), (999_700, "1 MB"), (1_240_000_000, "1.24 GB")],
)
def test_sizes_have_three_digits(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_progress_is_steps_and_what_is_left() -> None:
    def job(state: JobState, **progress: object) -> Job:
        return Job(ID, JobKind.POLICY_TRAINING, state, {}, progress=JobProgress(**progress))  # type: ignore[arg-type]

    assert describe_progress(job(JobState.RUNNING, step=3, total_steps=10, remaining_s=65.0, phase="training")) == (
        "training 3/10, 1:05 left"
    )
    assert describe_progress(
        job(JobState.RUNNING, phase="scoring", phase_done=1200, phase_total=5000, phase_unit="rows")
    ) == ("scoring 1,200/5,000 rows")
    assert describe_progress(job(JobState.RUNNING, phase="tokenizing")) == "tokenizing"
    assert describe_progress(job(JobState.CANCELLED, step=3, total_steps=10, remaining_s=65.0)) == "3/10"


def test_a_job_that_succeeded_with_warnings_says_so_in_the_list() -> None:
    jobs = [
        Job(ID, JobKind.EVALUATION, JobState.SUCCEEDED, {}, result=JobResult(summary={}, warnings=warnings))
        for warnings in ((), ("metric 'words' failed: no\nmore", "the plots failed"))
    ]
    columns = {column.title: column for column in job_columns(cast(Client, None), jobs)}

    assert [columns["reason"].value(job) for job in jobs] == ["", "warning: metric 'words' failed: no (and 1 more)"]
    assert [str(columns["state"].value(job).style) for job in jobs] == ["green", "yellow"]


def test_a_time_is_a_span_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    assert parse_since("2h") == 1_000_000.0 - 7200
    assert parse_since("1.5d") == 1_000_000.0 - 129_600
    assert parse_since("2026-01-31") is not None
    with pytest.raises(typer.BadParameter, match="a span such as"):
        parse_since("yesterday")


def test_a_size_is_read_in_powers_of_1000_or_1024() -> None:
    import typer

    sizes = [parse_size(text) for text in ("1", "500MB", "1.5GB", "4GiB", "20 kB", "2T")]
    assert sizes == [1, 500_000_000, 1_500_000_000, 4 << 30, 20_000, 2_000_000_000_000]
    for text in ("", "0", "-1GB", "1e9", "GB", "1XB", "nan"):
        with pytest.raises(typer.BadParameter, match="a size such as"):
            parse_size(text)


def test_a_thing_is_shown_without_what_is_nothing_and_in_few_digits(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"loss": 0.6989550225927503, "pairs": 10.0, "kl": None, "by": {"ece": float("nan"), "tiny": 1.23456789e-7}}
    show({"job_id": ID, "reason": "", "size_bytes": 936_306, "result": result}, as_json=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        f"job_id      {ID}",
        "size_bytes  936,306 (936 kB)",
        "result      loss: 0.698955",
        "pairs: 10",
        "by:",
        "ece: .nan",
        "tiny: 1.23457e-07",
    ]


def test_an_evaluation_says_whether_it_is_better_than_its_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    def estimate(mean: float) -> Estimate:
        return Estimate(mean=mean, std=1.0, ci=(mean - 0.5, mean + 0.5))

    def comparison(low: float, high: float) -> Comparison:
        return Comparison(win_rate=(low + high) / 2, win_rate_ci=(low, high), difference=0.25, difference_ci=(0.1, 0.4))

    report = EvaluationReport(
        name="qwen-madpo", model=EvaluatedModel(), reference=None, reward_model_id=None, sampling=SamplingParameters(),
        prompts=1200, samples_per_prompt=2, implicit_reward_accuracy=Accuracy(accuracy=0.75, ci=(0.7, 0.8), pairs=40),
        results=(EvaluationResult(
            temperature=1.0, metrics={"reward": estimate(1.25)}, kl=estimate(3.0), response_tokens=estimate(20.5),
            finished_ratio=0.985,
            versus={ID: {
                "reward": comparison(0.55, 0.65), "length": comparison(0.4, 0.6), "other": comparison(0.2, 0.3),
            }},
        ),),
    )  # fmt: skip

    show_evaluation(report, names={ID: "qwen-evaluation"})

    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "qwen-madpo: 1,200 prompts of 2 samples, temperature 1",
        "mean 95 % interval",
        "reward 1.25 0.75 to 1.75",
        "KL to the reference, nats 3 2.5 to 3.5",
        "tokens of a response 20.5 20 to 21",
        "finished before the limit 98.5%",
        "implicit reward right, of 40 pairs 75.0% 70.0% to 80.0%",
        "",
        "against qwen-evaluation",
        "wins 95 % interval ties difference 95 % interval it is",
        "reward 60.0% 55.0% to 65.0% 0.0% +0.25 +0.1 to +0.4 higher",
        "length 50.0% 40.0% to 60.0% 0.0% +0.25 +0.1 to +0.4 no clear difference",
        "other 25.0% 20.0% to 30.0% 0.0% +0.25 +0.1 to +0.4 lower",
    ]

    judged = Judged(
        pairs=40, unjudged=1, wins=20, ties=12, losses=8, win_rate=0.65, win_rate_ci=(0.55, 0.75),
        length_controlled_win_rate=0.6, length_controlled_win_rate_ci=(0.5, 0.7), agreement=0.8, first_rate=0.55,
    )  # fmt: skip
    use = JudgeUse(name="gpt", model="big", questions=80, prompt_tokens=40_000, completion_tokens=4_000, cost=0.14)
    result = report.results[0].model_copy(update={"versus": {}, "judged": {ID: judged}})
    show_evaluation(report.model_copy(update={"results": (result,), "judge": use}), names={ID: "base"})

    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[-6:]] == [
        "",
        "as the judge says",
        "against wins 95 % interval at equal length 95 % interval won/tied/lost same in both orders unjudged",
        "base 65.0% 55.0% to 75.0% 60.0% 50.0% to 70.0% 20/12/8 80% 1",
        "",
        "judge gpt (big): 80 questions, 40,000 tokens asked and 4,000 answered, which cost 0.14",
    ]
