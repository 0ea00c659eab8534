"""Forms of rows on the command line: how they are to be read, and what was found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from madpo.data.file_formats import format_of_name
from madpo.data.ranking import ListRule
from madpo.types import Dataset
from madpo_client.cli.output import console, show

ColumnMapping = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NAME=COLUMN", help="Read COLUMN as NAME; NAME= leaves it unread. Repeatable."),
]
Lists = Annotated[
    ListRule | None,
    typer.Option(help="What becomes of ranked responses; more than two are refused without it."),
]


def names_file(data: str) -> bool:
    """Whether a file is meant rather than a dataset of the gateway: it is there, or has the name of one."""
    return Path(data).exists() or "/" in data or format_of_name(data) is not None


def parse_columns(given: Sequence[str] | None) -> dict[str, str]:
    """`--map` options as a mapping. Raises BadParameter."""
    columns: dict[str, str] = {}
    for option in given or ():
        ours, equals, theirs = option.partition("=")
        if not ours or not equals:
            raise typer.BadParameter(
                f"must be NAME=COLUMN, or NAME= to leave it unread, got {option!r}", param_hint="--map"
            )
        if ours in columns:
            raise typer.BadParameter(f"{ours} is given twice", param_hint="--map")
        columns[ours] = theirs
    return columns


def show_forms(dataset: Dataset, *, as_json: bool) -> None:
    """A dataset field by field, and the forms its rows came in."""
    if as_json:
        show(dataset, as_json=True)
        return
    show(replace(dataset, forms=()), as_json=False)
    for form in dataset.forms:
        columns = ", ".join(ours if ours == given else f"{ours} from {given}" for ours, given in form.columns.items())
        noun = "row" if form.rows == 1 else "rows"
        console().print(f" {form.rows:,} {noun} of the form {form.name}: {columns}", markup=False)
