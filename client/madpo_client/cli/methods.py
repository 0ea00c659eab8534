"""`madpo methods`: what can be trained, with which parameters, and what its loss is."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from madpo.errors import InvalidArgumentError
from madpo_client.cli.arguments import complete_methods
from madpo_client.cli.output import AsJson, console

if TYPE_CHECKING:
    from madpo.losses.catalogue import Parameter
    from madpo.losses.method import Method

_COLUMNS = 100

app = typer.Typer(invoke_without_command=True, help="List and explain the preference-optimisation methods.")


@app.callback()
def list_without_a_command(context: typer.Context, as_json: AsJson = False) -> None:
    """List and explain the preference-optimisation methods."""
    if context.invoked_subcommand is None:
        list_methods(as_json)


@app.command("list")
def list_methods(as_json: AsJson = False) -> None:
    """List the methods, what each needs, and what it is for."""
    from madpo.losses.registry import METHODS

    rows = [describe(method) for method in METHODS.values()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    grid = Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column("name", no_wrap=True)
    grid.add_column("needs", width=26)
    grid.add_column("summary")
    for row in rows:
        grid.add_row(row["name"], Text(", ".join(row["needs"]) or "-", style="dim"), Text(row["summary"]))
    _narrow().print(grid)


@app.command("show")
def show_method(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="Its name.", autocompletion=complete_methods)],
    as_json: AsJson = False,
) -> None:
    """Show a method's purpose, formula, parameters, source and evidence."""
    from madpo.losses.catalogue import also_needs, formula_lines, needs, parameters
    from madpo.losses.method import EVIDENCE
    from madpo.losses.registry import get_method

    method = get_method(name)
    listed = parameters(method)
    if as_json:
        more = {"also_needs": also_needs(method), "params": {each.name: _as_json(each) for each in listed}}
        print(json.dumps(describe(method) | more, indent=2))
        return
    flags = ", ".join(needs(method)) or "nothing beside the pairs"
    more_flags = f"; with other parameters {', '.join(also_needs(method))}" if also_needs(method) else ""
    out = _narrow()
    out.print(Text(f"{name}: {method.summary}\n"))
    out.print(Text(f"{formula_lines(method)}\n", style="bold"))
    for each in listed:
        out.print(Text(f"{each.name} = {each.default}", style="bold"), Text(f"  {each.allowed}", style="dim"))
        out.print(Padding(Text(each.description), (0, 0, 0, 4), expand=False))
    out.print(Text(f"\nneeds     {flags}{more_flags}"))
    out.print(Text(f"source    {method.source}"))
    out.print(Text(f"evidence  {method.evidence}: {EVIDENCE[method.evidence]}"))


@app.command("eval")
def evaluate_vectors(
    vectors: Annotated[Path, typer.Option(help="JSON file with `batch` and `cases`; - reads standard input.")],
) -> None:
    """Compute methods on given numbers, in float64, as JSON."""
    from madpo_client.extras import require_extra

    require_extra("torch", "computing losses", ["torch"])
    from madpo.losses.vectors import evaluate_cases

    try:
        document = json.loads(sys.stdin.read() if str(vectors) == "-" else vectors.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read {vectors}: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"{vectors} must hold a JSON object with batch and cases")
    print(json.dumps(evaluate_cases(document), indent=2))


def describe(method: "Method") -> dict[str, Any]:
    """A method as a JSON object."""
    from madpo.losses.catalogue import needs

    return {
        "name": method.name,
        "summary": method.summary,
        "formula": method.formula,
        "needs": list(needs(method)),
        "params": method.config().model_dump(mode="json"),
        "source": method.source,
        "evidence": method.evidence,
    }


def _as_json(parameter: "Parameter") -> dict[str, Any]:
    return {
        "default": json.loads(parameter.default),
        "allowed": parameter.allowed,
        "description": parameter.description,
    }


def _narrow() -> Console:
    """Lines that can be read: at most 100 columns, also in a file."""
    found = console()
    return Console(highlight=False, width=min(found.width, _COLUMNS))
