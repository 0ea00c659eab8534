"""`madpo job`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madpo.types import JobKind
from madpo_client.cli.asked_job import asked_job, parse_settings, spec_of
from madpo_client.cli.context import open_client
from madpo_client.cli.field_options import SET_HELP, SPEC_HELP, complete_fields
from madpo_client.cli.output import AsJson, console, show, table
from madpo_client.cli.waiting import After, Name, Wait, follow

if TYPE_CHECKING:
    from madpo.jobs.fields import SpecField

app = typer.Typer(no_args_is_help=True, help="Create, follow, cancel and look into jobs.")


def parse_kind(name: str) -> JobKind:
    """A kind of job by its name. Raises BadParameter that lists those there are."""
    from madpo.errors import InvalidArgumentError
    from madpo.jobs.registry import kind_named

    try:
        return kind_named(name).name
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error)) from error


def complete_kinds(incomplete: str) -> list[str]:
    """What a shell offers as KIND."""
    return [kind.value for kind in JobKind if kind.value.startswith(incomplete)]


def complete_fields_of_kind(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What a shell offers behind `--set`, once the kind is given."""
    # Behind an option without its value the arguments before it have not been read.
    given = next((word for word in (context.params.get("kind"), *context.args) if word in set(JobKind)), None)
    return [] if given is None else complete_fields(JobKind(given), incomplete)


Kind = Annotated[
    JobKind,
    typer.Argument(
        parser=parse_kind,
        autocompletion=complete_kinds,
        metavar="KIND",
        help="What the job does.",
        show_default=False,
    ),
]


@app.command("create")
def create_job(
    context: typer.Context,
    kind: Kind,
    spec: Annotated[Path | None, typer.Option(metavar="FILE", help=SPEC_HELP)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help=SET_HELP, autocompletion=complete_fields_of_kind),
    ] = None,
    name: Name = "",
    after: After = [],  # noqa: B006
    wait: Wait = True,
) -> None:
    """Create a job of any kind, from a file and single fields."""
    from madpo_client.cli.spec_values import read_spec

    if spec is None and not settings:
        raise typer.BadParameter("give --spec, --set, or both")
    given = parse_settings(kind, settings or ())
    job = asked_job(kind, given, file=spec, spec=None if spec is None else read_spec(spec))
    checked = job.checked()
    with open_client(context) as client:
        follow(checked.create(client, name=name, after=after), wait=wait)


@app.command("fields")
def list_fields(kind: Kind, as_json: AsJson = False) -> None:
    """List what the spec of a kind of job says: every field, its type, range and default, and what it means."""
    from rich.table import Table
    from rich.text import Text

    from madpo.jobs.fields import fields_of

    fields = list(fields_of(spec_of(kind)))
    if as_json:
        print(json.dumps([_field_as_json(field) for field in fields], indent=2))
        return
    out, grid = console(), Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column("field", no_wrap=True)
    grid.add_column("type", overflow="fold")
    grid.add_column("default", overflow="fold", max_width=10 if out.is_terminal else None)
    grid.add_column("meaning")
    for field in fields:
        grid.add_row(field.name, Text(field.allowed), Text(field.default), Text(field.description))
    out.print(grid)


def _field_as_json(field: "SpecField") -> Mapping[str, Any]:
    return {
        "name": field.name,
        "type": field.allowed,
        "required": field.is_required,
        "default": None if field.is_required else json.loads(field.default),
        "description": field.description,
    }


@app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with open_client(context) as client:
        listed = [job.job for job in client.jobs.list(limit=limit)]
        table(listed, ("job_id", "kind", "state", "display_name", "attempt", "create_time"), as_json=as_json)


@app.command("show")
def show_job(context: typer.Context, job_id: str, as_json: AsJson = False) -> None:
    """Show a job: spec, state, progress, result."""
    with open_client(context) as client:
        show(client.jobs.get(job_id).job, as_json=as_json)


@app.command("watch")
def watch_job(
    context: typer.Context,
    job_id: str,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Show the run's log lines.")] = True,
    cursor: Annotated[str, typer.Option(help="Go on after this event.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON event a line.")] = False,
) -> None:
    """Show a job's events until it is over."""
    from madpo_client.progress import JobView

    with open_client(context) as client:
        job = client.jobs.get(job_id)
        if as_json:
            for event in job.watch(cursor):
                kind = type(event.event).__name__
                print(json.dumps({**asdict(event), "kind": kind}), flush=True)
            return
        with JobView(job.job, log=log) as view:
            for event in job.watch(cursor):
                view.show(event)


@app.command("cancel")
def cancel_job(context: typer.Context, job_id: str) -> None:
    """Cancel a job; a running one writes a last checkpoint first."""
    with open_client(context) as client:
        print(client.jobs.get(job_id).cancel().state.value)


@app.command("artifacts")
def job_artifacts(
    context: typer.Context,
    job_id: str,
    out: Annotated[Path | None, typer.Option(help="Download them into this directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """List or download what a job left: reports, plots, metrics, ledger."""
    with open_client(context) as client:
        job = client.jobs.get(job_id)
        if out is not None:
            job.download_artifacts(out)
        table(job.artifacts(), ("path", "size_bytes", "sha256"), as_json=as_json)
