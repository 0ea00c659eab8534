"""`madpo calibrate`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madpo.types import JobKind
from madpo_client.cli.asked_job import AskedJob, Setting
from madpo_client.cli.context import open_client
from madpo_client.cli.field_options import FieldOption, spec_command
from madpo_client.cli.output import AsJson, Column, console, table
from madpo_client.cli.waiting import After, Name, Wait, wait_for
from madpo_client.deprecation import warn_renamed

if TYPE_CHECKING:
    from madpo.calibration.report import CalibrationReport, Subsets

app = typer.Typer()

CALIBRATION = (
    FieldOption("--eval-dataset", "eval_dataset"),
    FieldOption("--reward-model", "reward_model"),
    FieldOption("--dataset", "dataset"),
    FieldOption("--training-dataset", "training_dataset_id", is_hidden=True),
    FieldOption("--method", "method.name"),
    FieldOption("--param", "method.params", gives="entry"),
    FieldOption("--temperature", "temperature"),
)


@spec_command(app, "calibrate", JobKind.CALIBRATION, CALIBRATION)
def calibrate(
    context: typer.Context,
    job: AskedJob,
    out: Annotated[Path | None, typer.Option(help="Put calibration.json and calibration.png here.")] = None,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Measure how far a reward model's margins are log-odds, and what weights follow, before training."""
    if not wait and (out is not None or as_json):
        raise typer.BadParameter("--out and --json need the result; leave out --no-wait")
    checked = _in_new_words(job).checked()
    with open_client(context) as client:
        created = checked.create(client, name=name, after=after)
        if wait_for(created, wait=wait, quiet=as_json) is None:
            return
        report = created.calibration()
        if out is not None:
            created.download_artifacts(out)
        if as_json:
            print(report.model_dump_json(indent=2))
        else:
            show_report(report)


def _in_new_words(job: AskedJob) -> AskedJob:
    """A job as asked for in the version before, when --dataset named the held-out pairs. Goes with the next version."""
    now: dict[str, str] = {}
    if job.file is None and "dataset" in job.spec and "eval_dataset" not in job.spec:
        warn_renamed("--dataset for the held-out pairs", "--eval-dataset")
        now["dataset"] = "eval_dataset"
    if "training_dataset_id" in job.spec and ("dataset" not in job.spec or "dataset" in now):
        warn_renamed("--training-dataset", "--dataset")
        now["training_dataset_id"] = "dataset"
    spec = {now.get(name, name): value for name, value in job.spec.items()}
    return replace(job, spec=spec, settings=tuple(_in_new_place(setting, now) for setting in job.settings))


def _in_new_place(setting: Setting, now: Mapping[str, str]) -> Setting:
    name, dot, rest = setting.field.partition(".")
    return replace(setting, field=f"{now.get(name, name)}{dot}{rest}")


def show_report(report: "CalibrationReport") -> None:
    """The figures people decide by, as a small table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_header=False, box=None)
    for name, value in _rows(report):
        grid.add_row(Text(name, style="bold"), Text(value))
    console().print(grid)
    if report.subsets is not None:
        _show_subsets(report.subsets)
    for warning in report.warnings:
        console().print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _show_subsets(found: "Subsets") -> None:
    from rich.text import Text

    columns = (
        Column("part", lambda row: row[0]),
        Column("accuracy", lambda row: f"{row[1].accuracy:.1%}", is_right=True),
        Column("95 % interval", lambda row: f"{row[1].ci[0]:.1%} to {row[1].ci[1]:.1%}"),
        Column("pairs", lambda row: f"{row[1].pairs:,}" if hasattr(row[1], "pairs") else "", is_right=True),
        Column("ties", lambda row: f"{row[1].ties:,}" if hasattr(row[1], "ties") else "", is_right=True),
    )
    scores = [*found.sections.items(), *([("mean of sections", found.score)] if found.score else [])]
    console().print(Text("\nby part", style="bold"))
    table([*found.subsets.items(), *scores], columns, as_json=False)


def _rows(report: "CalibrationReport") -> Iterator[tuple[str, str]]:
    held_out, margins, weights = report.held_out, report.margins, report.weights
    if held_out is not None:
        high = "unbounded" if held_out.temperature_high is None else f"{held_out.temperature_high:.2f}"
        yield "held-out pairs", str(held_out.pairs)
        yield "accuracy", f"{held_out.accuracy:.1%}"
        yield "ECE", f"{held_out.ece:.3f}; {held_out.ece_used:.3f} as used"
        yield "temperature", f"{held_out.temperature:.2f} (95 % interval {held_out.temperature_low:.2f} to {high})"
    yield "margins divided by", f"{report.temperature.value:.3g} ({report.temperature.rule})"
    yield "contradicted", f"{margins.contradicted_ratio:.1%} of {margins.pairs} {margins.of.replace('_', '-')} pairs"
    yield "|margin| quantiles", _quantiles(margins.absolute_quantiles)
    if report.suggested_tau is not None:
        yield "99.9 % sure at", f"{report.suggested_tau:.3g} (tau=auto)"
    for name, scale in report.scales.items():
        yield name, f"{scale.value:.3g} ({scale.rule}); {scale.beyond_ratio:.1%} of |margin| are larger"
    yield f"weights of {report.method}", f"mean {weights.mean:.3g}, {_quantiles(weights.quantiles)}"


def _quantiles(values: dict[str, float]) -> str:
    return "  ".join(f"{float(share):.0%}: {value:.3g}" for share, value in values.items())
