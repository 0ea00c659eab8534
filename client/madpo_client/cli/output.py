"""What commands print: one thing field by field, many as a table, both as JSON on request."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the id only, for scripts.")]


def show(value: "DataclassInstance | Mapping[str, Any]", *, as_json: bool) -> None:
    """One thing, field by field."""
    fields = _fields(value)
    if as_json:
        print(json.dumps(fields, indent=2))
        return
    grid = Table(show_header=False, box=None)
    for name, field in fields.items():
        if field not in (None, "", (), [], {}):
            grid.add_row(f"[bold]{name}[/]", _cell(name, field))
    console().print(grid)


def table(
    rows: "Sequence[DataclassInstance] | Sequence[Mapping[str, Any]]", columns: Sequence[str], *, as_json: bool
) -> None:
    """Many things of a kind."""
    listed = [_fields(row) for row in rows]
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    grid = Table(*columns, box=None, header_style="bold")
    for fields in listed:
        grid.add_row(*(_cell(name, fields[name]) for name in columns))
    console().print(grid)


def console() -> Console:
    """Tables are cut to a terminal's width only where there is a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def _fields(value: "DataclassInstance | Mapping[str, Any]") -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else asdict(value)


def _cell(name: str, value: Any) -> Any:
    from rich.text import Text

    if name.endswith("_time") and isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, (dict, list, tuple)):
        return Text(json.dumps(value, indent=2, sort_keys=True))
    return Text(str(value))
