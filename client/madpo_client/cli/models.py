"""`madpo model`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from madpo.model_files.uploads import files_to_upload
from madpo_client.cli.arguments import MODEL_HELP, JobArgument, ModelArgument, complete_models
from madpo_client.cli.context import open_client, said_when_interrupted
from madpo_client.cli.output import AsJson, Column, Quiet, show, show_deleted, size_text, table, time_text
from madpo_client.merged import MergedDtype, stored_base
from madpo_client.printable import printable

if TYPE_CHECKING:
    from madpo.types import Model
    from madpo_client.client import Client

app = typer.Typer(no_args_is_help=True, help="Upload, import and download models and checkpoints.")


BaseOption = Annotated[
    str | None,
    typer.Option(
        help=f"For a LoRA adapter: the model it was trained on. {MODEL_HELP}",
        autocompletion=complete_models,
        show_default="what its files name",
    ),
]


@app.command("upload")
def upload_model(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Hugging Face directory: safetensors, tokenizer, config.")],
    base: BaseOption = None,
    name: Annotated[str | None, typer.Option(help="A label; by default the directory's name.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Upload a model directory, or a LoRA adapter of peft's."""
    skipped = files_to_upload(directory).skipped
    if skipped and not quiet:
        print(f"skipped, no part of a model: {', '.join(skipped)}", file=sys.stderr)
    with open_client(context) as client, said_when_interrupted("stopped before the model was made: nothing is stored"):
        model = client.models.upload(directory, base=base, name=name, progress=not quiet)
    _say_warnings(model)
    print(model.model_id) if quiet else show(model, as_json=as_json)


@app.command("import")
def import_model(
    context: typer.Context,
    hub_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    revision: Annotated[
        str | None,
        typer.Option(
            help="A branch, a tag or a commit; which full commit it is now is said and kept.", show_default="main"
        ),
    ] = None,
    base: BaseOption = None,
    commit: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Let the gateway fetch a model from the hub, or a LoRA adapter of peft's."""
    with open_client(context) as client:
        model = client.models.import_from_hub(hub_id, revision=revision, base=base, commit=commit)
    _say_warnings(model)
    show(model, as_json=as_json)


def _say_warnings(model: "Model") -> None:
    for warning in model.metadata.get("warnings", ()):
        print(printable(f"warning: {warning}"), file=sys.stderr)


@app.command("list")
def list_models(
    context: typer.Context,
    kind: Annotated[
        Literal["causal_lm", "reward"] | None, typer.Option(help="Of this kind: policies, or reward models.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models, newest first."""
    with open_client(context) as client:
        models = client.models.list()
    names = {model.model_id: model.display_name for model in models}
    columns = (
        Column("model", lambda model: model.model_id),
        Column("name", lambda model: model.display_name, rank=1, shortest=12),
        Column("kind", lambda model: model.kind, rank=2),
        Column("base", lambda model: names.get(model.base_model_id) or model.base_model_id, rank=4, shortest=12),
        Column("dtype", lambda model: model.dtype, rank=5),
        Column("size", lambda model: size_text(model.size_bytes), rank=3, is_right=True),
        Column("created", lambda model: time_text(model.create_time), rank=6),
        Column("architecture", lambda model: model.architecture, rank=7),
    )
    listed = [model for model in models if kind in (None, model.kind)]
    table(listed, columns, as_json=as_json, nothing="no models; `madpo model upload` brings one")


@app.command("show")
def show_model(context: typer.Context, model: ModelArgument, as_json: AsJson = False) -> None:
    """Show one model."""
    with open_client(context) as client:
        show(client.models.get(model), as_json=as_json)


@app.command("delete")
def delete_models(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP, autocompletion=complete_models)],
    as_json: AsJson = False,
) -> None:
    """Delete models that no unfinished job and no adapter needs."""

    def delete(client: "Client") -> Iterator[str]:
        for model in models:
            yield client.models.delete(model)

    with open_client(context) as client:
        show_deleted(delete(client), as_json=as_json)


@app.command("checkpoints")
def list_checkpoints(context: typer.Context, job: JobArgument, as_json: AsJson = False) -> None:
    """List the checkpoints of a training job, newest first."""
    with open_client(context) as client:
        found = client.models.checkpoints(job)
    columns = (
        Column("checkpoint", lambda each: f"{each.job_id}@{each.step}"),
        Column("size", lambda each: size_text(each.size_bytes), rank=1, is_right=True),
        Column("created", lambda each: time_text(each.create_time), rank=2),
        Column("attempt", lambda each: each.attempt, rank=3, is_right=True),
    )
    table(found, columns, as_json=as_json, nothing="no checkpoints yet")


@app.command("download")
def download_model(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|JOB|JOB@STEP",
            help="A model, the model a job has made, or a checkpoint: by id, the beginning of it, name, or @last.",
            autocompletion=complete_models,
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Merge an adapter into its base as that is stored, here (needs torch)."),
    ] = False,
    dtype: Annotated[
        MergedDtype,
        typer.Option(
            help="Of a merged model: exact keeps in float32 what the base's dtype would round, base rounds it."
        ),
    ] = "exact",
    as_json: AsJson = False,
) -> None:
    """Download a model, the model a job made, or a checkpoint."""
    with open_client(context) as client:
        path = client.models.download(model, directory, merged=merged, merged_dtype=dtype, progress=not as_json)
    show({"directory": str(path)}, as_json=True) if as_json else print(path)
    base = stored_base(path)
    if base:
        print(
            f"it is an adapter of {base}, which peft looks for in a folder of that name (`madpo model download {base} "
            f"{base}`); --merged makes one model of the two",
            file=sys.stderr,
        )
