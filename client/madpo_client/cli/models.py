"""`madpo model`."""

from pathlib import Path
from typing import Annotated

import typer

from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, Quiet, show, table

app = typer.Typer(no_args_is_help=True, help="Upload, import and download models and checkpoints.")


@app.command("upload")
def upload_model(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Hugging Face directory: safetensors, tokenizer, config.")],
    name: Annotated[str | None, typer.Option(help="A label; by default the directory's name.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Upload a model directory."""
    with open_client(context) as client:
        model = client.models.upload(directory, name=name, progress=not quiet)
    print(model.model_id) if quiet else show(model, as_json=as_json)


@app.command("import")
def import_model(
    context: typer.Context,
    hub_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    commit: Annotated[str, typer.Option(help="Full 40-digit commit.")],
    as_json: AsJson = False,
) -> None:
    """Let the gateway fetch a model from the hub."""
    with open_client(context) as client:
        show(client.models.import_from_hub(hub_id, commit=commit), as_json=as_json)


@app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List models."""
    with open_client(context) as client:
        columns = ("model_id", "display_name", "kind", "architecture", "size_bytes", "create_time")
        table(client.models.list(), columns, as_json=as_json)


@app.command("show")
def show_model(context: typer.Context, model_id: str, as_json: AsJson = False) -> None:
    """Show one model."""
    with open_client(context) as client:
        show(client.models.get(model_id), as_json=as_json)


@app.command("checkpoints")
def list_checkpoints(context: typer.Context, job_id: str, as_json: AsJson = False) -> None:
    """List the checkpoints of a training job, newest first."""
    with open_client(context) as client:
        columns = ("step", "attempt", "size_bytes", "create_time")
        table(client.models.checkpoints(job_id), columns, as_json=as_json)


@app.command("download")
def download_model(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="MODEL_ID, JOB_ID or JOB_ID@STEP.")],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
) -> None:
    """Download a model, the model a job made, or a checkpoint."""
    with open_client(context) as client:
        print(client.models.download(model, directory, progress=True))
