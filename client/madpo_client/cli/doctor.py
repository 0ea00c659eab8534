"""`madpo doctor`: what is wrong, and what to do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from madpo_client.cli.output import AsJson, console, table

if TYPE_CHECKING:
    from madpo_client.doctor import Finding

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@app.command("doctor")
def doctor(
    context: typer.Context,
    inside: Annotated[
        bool, typer.Option("--inside", help="Look at this machine or container and the services configured in it.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 also for warnings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the gateway from here, or what a service needs; exit code 1 when something is wrong."""
    from madpo_client.doctor import exit_code

    with Console(stderr=True).status("looking"):
        findings = _look_inside() if inside else _look_from_outside(context)
    if as_json:
        table(findings, (), as_json=True)
    else:
        _print(findings)
    raise typer.Exit(exit_code(findings, strict=strict))


def _look_inside() -> "list[Finding]":
    from madpo_client.doctor.inside import check_inside

    return list(check_inside())


def _look_from_outside(context: typer.Context) -> "list[Finding]":
    from madpo_client.doctor.gateway import check_gateway
    from madpo_client.settings import client_settings

    return list(check_gateway(client_settings(**context.obj)))


def _print(findings: "Sequence[Finding]") -> None:
    grid = Table(box=None, show_header=False)
    for finding in findings:
        text = Text(finding.message)
        if finding.advice:
            text.append(f"\n-> {finding.advice}", style="italic")
        grid.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.check, text)
    console().print(grid)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning", "ok")}
    print(", ".join(f"{level}: {count}" for level, count in counts.items()))
