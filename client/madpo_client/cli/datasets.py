"""`madpo dataset`."""

from pathlib import Path
from typing import Annotated

import typer

from madpo.data.file_formats import FORMATS
from madpo_client.cli.check import CheckCommand, check_dataset
from madpo_client.cli.context import open_client
from madpo_client.cli.forms import ColumnMapping, Lists, parse_columns, show_forms
from madpo_client.cli.output import AsJson, Quiet, table

app = typer.Typer(no_args_is_help=True, help="Upload, check and delete datasets.")


@app.command("upload")
def upload_dataset(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help="JSON Lines, JSON, Parquet, Arrow or CSV, plain, gzip or zstd; or a `datasets` directory."),
    ],
    name: Annotated[str | None, typer.Option(help="A label; by default the file's name.")] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by default told from the file.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Upload files of preference pairs, completions or prompts as one dataset; docs/data.md shows what rows can be."""
    with open_client(context) as client:
        dataset = client.datasets.upload(
            files[0] if len(files) == 1 else files,
            name=name,
            format=format,
            columns=parse_columns(columns),
            lists=lists,
            progress=not quiet,
        )
    print(dataset.dataset_id) if quiet else show_forms(dataset, as_json=as_json)


@app.command("import")
def import_dataset(
    context: typer.Context,
    hub_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    commit: Annotated[str, typer.Option(help="Full 40-digit commit.")],
    files: Annotated[
        list[str] | None, typer.Option("--file", help="Name or pattern, such as 'data/train-*.parquet'; repeatable.")
    ] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by default told from the file.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Let the gateway fetch a dataset from the hub."""
    with open_client(context) as client:
        dataset = client.datasets.import_from_hub(
            hub_id, commit=commit, files=files or (), format=format, columns=parse_columns(columns), lists=lists
        )
    print(dataset.dataset_id) if quiet else show_forms(dataset, as_json=as_json)


@app.command("list")
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List datasets."""
    with open_client(context) as client:
        columns = ("dataset_id", "display_name", "kind", "rows", "size_bytes", "columns", "create_time")
        table(client.datasets.list(), columns, as_json=as_json)


@app.command("show")
def show_dataset(context: typer.Context, dataset_id: str, as_json: AsJson = False) -> None:
    """Show one dataset."""
    with open_client(context) as client:
        show_forms(client.datasets.get(dataset_id), as_json=as_json)


app.command("check", cls=CheckCommand)(check_dataset)


@app.command("delete")
def delete_dataset(context: typer.Context, dataset_id: str) -> None:
    """Delete a dataset."""
    with open_client(context) as client:
        client.datasets.delete(dataset_id)
