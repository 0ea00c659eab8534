"""`madpo calibrate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, console
from madpo_client.cli.run import After, Name, Wait, parse_params, parse_temperature, wait_for

if TYPE_CHECKING:
    from madpo.calibration.report import CalibrationReport

app = typer.Typer()


@app.command("calibrate")
def calibrate(
    context: typer.Context,
    eval_dataset: Annotated[
        str | None, typer.Option(help="Held-out pairs, such as the reward model was not trained on: DATASET_ID.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="MODEL_ID or JOB_ID; without one, margins come from the datasets.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The pairs to be trained on, for quantiles and weights: DATASET_ID.")
    ] = None,
    training_dataset: Annotated[
        str | None, typer.Option(hidden=True, help="The old name of --dataset, which then named the held-out pairs.")
    ] = None,
    method: Annotated[str, typer.Option(help="What will read the margins.")] = "madpo",
    param: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="A parameter of the method, such as tau=auto; repeatable.")
    ] = [],  # noqa: B006
    temperature: Annotated[str, typer.Option(help="Divides margins: a number, or fit.")] = "1",
    out: Annotated[Path | None, typer.Option(help="Put calibration.json and calibration.png here.")] = None,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Measure how far a reward model's margins are log-odds, and what weights follow, before training."""
    if not wait and (out is not None or as_json):
        raise typer.BadParameter("--out and --json need the result; leave out --no-wait")
    with open_client(context) as client:
        job = client.jobs.calibrate(
            eval_dataset=eval_dataset,
            reward_model=reward_model,
            dataset=dataset,
            training_dataset=training_dataset,
            method=method,
            params=parse_params(param),
            temperature=parse_temperature(temperature),
            name=name,
            depends_on=after,
        )
        if wait_for(job, wait=wait, quiet=as_json) is None:
            return
        report = job.calibration()
        if out is not None:
            job.download_artifacts(out)
        if as_json:
            print(report.model_dump_json(indent=2))
        else:
            show_report(report)


def show_report(report: "CalibrationReport") -> None:
    """The figures people decide by, as a small table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_header=False, box=None)
    for name, value in _rows(report):
        grid.add_row(Text(name, style="bold"), Text(value))
    console().print(grid)
    for warning in report.warnings:
        console().print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


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
