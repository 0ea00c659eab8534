"""`madpo dataset`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madpo.data.file_formats import FORMATS
from madpo_client.cli.arguments import DATASET_HELP, DatasetArgument, complete_datasets
from madpo_client.cli.check import CheckCommand, check_dataset
from madpo_client.cli.context import open_client, said_when_interrupted
from madpo_client.cli.forms import ColumnMapping, Lists, parse_columns, show_forms
from madpo_client.cli.output import AsJson, Column, Quiet, show_deleted, size_text, table, time_text

if TYPE_CHECKING:
    from madpo_client.client import Client

Revision = Annotated[str | None, typer.Option(help="Of the hub: a branch, a tag or a commit.", show_default="main")]

app = typer.Typer(no_args_is_help=True, help="Upload, check and delete datasets.")


@app.command("upload")
def upload_dataset(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="JSON Lines, JSON, Parquet, Arrow or CSV, plain, gzip or zstd; a `datasets` folder; or hub:OWNER/NAME."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="A label; by default the file's name.")] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by default told from the file.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset of the hub; needed where it has several.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset of the hub; needed where it has several.")] = None,
    revision: Revision = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Upload files of preference pairs, completions or prompts as one dataset; docs/data.md shows what rows can be."""
    stopped = "stopped before the dataset was made; the same command goes on where it stopped, for some hours"
    with open_client(context) as client, said_when_interrupted(stopped):
        dataset = client.datasets.upload(
            files[0] if len(files) == 1 else files,
            name=name,
            format=format,
            columns=parse_columns(columns),
            lists=lists,
            split=split,
            config=config,
            revision=revision,
            progress=not quiet,
        )
    print(dataset.dataset_id) if quiet else show_forms(dataset, as_json=as_json)


@app.command("import")
def import_dataset(
    context: typer.Context,
    hub_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    revision: Revision = None,
    files: Annotated[
        list[str] | None, typer.Option("--file", help="Name or pattern, such as 'data/train-*.parquet'; repeatable.")
    ] = None,
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by default told from the file.")] = None,  # noqa: A002
    columns: ColumnMapping = None,
    lists: Lists = None,
    commit: Annotated[str | None, typer.Option(hidden=True)] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Let the gateway fetch a dataset from the hub."""
    with open_client(context) as client:
        dataset = client.datasets.import_from_hub(
            hub_id,
            revision=revision,
            files=files or (),
            format=format,
            columns=parse_columns(columns),
            lists=lists,
            commit=commit,
        )
    print(dataset.dataset_id) if quiet else show_forms(dataset, as_json=as_json)


@app.command("list")
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with open_client(context) as client:
        listed = client.datasets.list()
    columns = (
        Column("dataset", lambda each: each.dataset_id),
        Column("name", lambda each: each.display_name, rank=1, shortest=12),
        Column("kind", lambda each: each.kind.value, rank=3),
        Column("rows", lambda each: f"{each.rows:,}", rank=2, is_right=True),
        Column("size", lambda each: size_text(each.size_bytes), rank=4, is_right=True),
        Column("created", lambda each: time_text(each.create_time), rank=5),
        Column("every row has", lambda each: ", ".join(each.columns), rank=6, shortest=13),
    )
    table(listed, columns, as_json=as_json, nothing="no datasets; `madpo dataset upload` brings one")


@app.command("show")
def show_dataset(context: typer.Context, dataset: DatasetArgument, as_json: AsJson = False) -> None:
    """Show one dataset."""
    with open_client(context) as client:
        show_forms(client.datasets.get(dataset), as_json=as_json)


@app.command("download")
def download_dataset(
    context: typer.Context,
    dataset: DatasetArgument,
    file: Annotated[Path, typer.Argument(help="Where to write the rows, as JSON Lines.")],
    as_json: AsJson = False,
) -> None:
    """Write a dataset to a file, which can be uploaded again as the same dataset."""
    with open_client(context) as client:
        path = client.datasets.download(dataset, file)
    print(json.dumps({"file": str(path)}) if as_json else path)


app.command("check", cls=CheckCommand)(check_dataset)


@app.command("delete")
def delete_datasets(
    context: typer.Context,
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET...", help=DATASET_HELP, autocompletion=complete_datasets)
    ],
    as_json: AsJson = False,
) -> None:
    """Delete datasets that no unfinished job needs."""

    def delete(client: "Client") -> Iterator[str]:
        for dataset in datasets:
            yield client.datasets.delete(dataset)

    with open_client(context) as client:
        show_deleted(delete(client), as_json=as_json)
