"""What an evaluation measured, and whether it is better than the ones it is compared with."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from madpo_client.cli.output import Column, console, table

if TYPE_CHECKING:
    from madpo.evaluation.report import Comparison, Estimate, EvaluationReport, EvaluationResult, Judged, JudgeUse

_Row = tuple[str, str, str]


def show_evaluation(report: "EvaluationReport", *, names: Mapping[str, str]) -> None:
    """The figures of each temperature, and those against each baseline.

    Args:
        report: What was measured.
        names: Of the baselines' jobs, by id.
    """
    out = console()
    for result in report.results:
        samples = f" of {report.samples_per_prompt} samples" if report.samples_per_prompt > 1 else ""
        title = (
            f"{report.name or 'evaluation'}: {report.prompts:,} prompts{samples}, temperature {result.temperature:g}"
        )
        out.print(Text(title, style="bold"), soft_wrap=True)
        columns = (
            Column("", lambda row: row[0]),
            Column("mean", lambda row: row[1], is_right=True),
            Column("95 % interval", lambda row: row[2], rank=1),
        )
        table(list(_figures(report, result)), columns, as_json=False)
        for job_id, comparisons in result.versus.items():
            _show_comparison(names.get(job_id) or job_id, comparisons)
        if result.judged:
            _show_judged({names.get(against) or against: judged for against, judged in result.judged.items()})
    if report.judge is not None:
        out.print(Text(f"\n{_use(report.judge)}", style="dim"), soft_wrap=True)


def _show_judged(judged: "Mapping[str, Judged]") -> None:
    console().print(Text("\nas the judge says", style="bold"), soft_wrap=True)
    columns = (
        Column("against", lambda row: row[0]),
        Column("wins", lambda row: f"{row[1].win_rate:.1%}", is_right=True),
        Column("95 % interval", lambda row: _interval(row[1].win_rate_ci, "{:.1%}"), rank=1),
        Column("at equal length", lambda row: f"{row[1].length_controlled_win_rate:.1%}", is_right=True),
        Column("95 % interval ", lambda row: _interval(row[1].length_controlled_win_rate_ci, "{:.1%}"), rank=2),
        Column("won/tied/lost", lambda row: f"{row[1].wins}/{row[1].ties}/{row[1].losses}", rank=4, is_right=True),
        Column("same in both orders", lambda row: f"{row[1].agreement:.0%}", rank=3, is_right=True),
        Column("unjudged", lambda row: f"{row[1].unjudged}", rank=5, is_right=True),
    )
    table(list(judged.items()), columns, as_json=False)


def _use(judge: "JudgeUse") -> str:
    cost = "" if judge.cost is None else f", which cost {judge.cost:.4g}"
    tokens = f"{judge.prompt_tokens:,} tokens asked and {judge.completion_tokens:,} answered"
    return f"judge {judge.name} ({judge.model}): {judge.questions:,} questions, {tokens}{cost}"


def _show_comparison(baseline: str, comparisons: "Mapping[str, Comparison]") -> None:
    out = console()
    out.print(Text(f"\nagainst {baseline}", style="bold"), soft_wrap=True)
    columns = (
        Column("", lambda row: row[0]),
        Column("wins", lambda row: f"{row[1].win_rate:.1%}", is_right=True),
        Column("95 % interval", lambda row: _interval(row[1].win_rate_ci, "{:.1%}"), rank=1),
        Column("ties", lambda row: f"{row[1].tie_rate:.1%}", rank=4, is_right=True),
        Column("difference", lambda row: f"{row[1].difference:+.3g}", rank=2, is_right=True),
        Column("95 % interval ", lambda row: _interval(row[1].difference_ci, "{:+.3g}"), rank=3),
        Column("it is", lambda row: _verdict(row[1])),
    )
    table(list(comparisons.items()), columns, as_json=False)


def _verdict(comparison: "Comparison") -> Text:
    """Whether responses win more often than not, as far as the interval tells."""
    if comparison.win_rate_ci is None:
        return Text("one prompt tells nothing", style="dim")
    low, high = comparison.win_rate_ci
    if comparison.tie_rate == 1.0:
        return Text("the same", style="yellow")
    if low > 0.5:
        return Text("higher", style="green")
    return Text("lower", style="red") if high < 0.5 else Text("no clear difference", style="yellow")


def _figures(report: "EvaluationReport", result: "EvaluationResult") -> Iterator[_Row]:
    for name, estimate in result.metrics.items():
        yield _estimate(name, estimate)
    if result.kl is not None:
        yield _estimate("KL to the reference, nats", result.kl)
    yield _estimate("tokens of a response", result.response_tokens)
    yield "finished before the limit", f"{result.finished_ratio:.1%}", ""
    if report.truncated_responses:
        yield "read only in part by the reward model", f"{report.truncated_responses:,}", ""
    if (accuracy := report.implicit_reward_accuracy) is not None:
        name = f"implicit reward right, of {accuracy.pairs:,} pairs"
        yield name, f"{accuracy.accuracy:.1%}", _interval(accuracy.ci, "{:.1%}")


def _estimate(name: str, estimate: "Estimate") -> _Row:
    return name, f"{estimate.mean:.3g}", _interval(estimate.ci, "{:.3g}")


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"
