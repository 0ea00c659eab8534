"""`madpo job`."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madpo.types import JobKind, JobState
from madpo_client.cli.arguments import JOB_HELP, JobArgument, complete_jobs, complete_methods, complete_models
from madpo_client.cli.asked_job import asked_job, parse_settings, spec_of
from madpo_client.cli.context import open_client, said_when_interrupted
from madpo_client.cli.field_options import SET_HELP, SPEC_HELP, complete_fields
from madpo_client.cli.output import AsJson, Column, console, show, show_deleted, size_text, table
from madpo_client.cli.waiting import After, Name, Wait, follow
from madpo_client.printable import printable

if TYPE_CHECKING:
    from madpo.jobs.fields import SpecField
    from madpo_client.client import Client

_FILES = (
    Column("path", lambda file: file.path),
    Column("size", lambda file: size_text(file.size_bytes), rank=1, is_right=True),
    Column("sha256", lambda file: file.sha256, rank=2),
)

app = typer.Typer(no_args_is_help=True, help="Create, follow, cancel and look into jobs.")


def parse_kind(name: str) -> JobKind:
    """A kind of job by its name. Raises BadParameter that lists those there are."""
    from madpo.errors import InvalidArgumentError
    from madpo.jobs.registry import kind_named

    try:
        return kind_named(name).name
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error)) from error


def parse_kind_begun(name: str) -> JobKind:
    """The same by a beginning that no other has, as a list of jobs shows it: `policy`."""
    begun = [kind for kind in JobKind if kind.value.startswith(name)]
    return begun[0] if len(begun) == 1 else parse_kind(name)


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
    as_json: AsJson = False,
) -> None:
    """Create a job of any kind, from a file and single fields."""
    from madpo_client.cli.spec_values import read_spec

    if spec is None and not settings:
        raise typer.BadParameter("give --spec, --set, or both")
    given = parse_settings(kind, settings or ())
    job = asked_job(kind, given, file=spec, spec=None if spec is None else read_spec(spec))
    checked = job.checked()
    with open_client(context) as client:
        follow(checked.create(client, name=name, after=after), wait=wait, as_json=as_json)


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
    from madpo.jobs.fields import REQUIRED

    return {
        "name": field.name,
        "type": field.allowed,
        "required": field.is_required,
        "default": None if field.default == REQUIRED else json.loads(field.default),
        "description": field.description,
    }


@app.command("list")
def list_jobs(
    context: typer.Context,
    states: Annotated[
        list[JobState] | None,
        typer.Option(
            "--state",
            case_sensitive=False,
            metavar="STATE",
            help=f"In this state; repeatable: {', '.join(JobState).lower()}.",
        ),
    ] = None,
    kinds: Annotated[
        list[JobKind] | None,
        typer.Option(
            "--kind",
            parser=parse_kind_begun,
            autocompletion=complete_kinds,
            metavar="KIND",
            help="Of this kind; repeatable.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(autocompletion=complete_methods, help="With this method.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", autocompletion=complete_models, help="That use or make this model.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With this in the name; * and ? stand for any letters.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Created since: 90m, 2h, 3d, or a date.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest.")] = 50,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids only, for scripts.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from madpo_client.cli.job_list import job_columns, require_method
    from madpo_client.cli.spans import parse_since

    if method is not None:
        require_method(method)
    start = parse_since(since)
    with open_client(context) as client:
        found = client.jobs.list(
            limit=limit, states=states or (), kinds=kinds or (), method=method, model=model, name=name, since=start
        )
        listed = [job.job for job in found]
        if quiet:
            print("".join(f"{job.job_id}\n" for job in listed), end="")
            return
        columns = [] if as_json else job_columns(client, listed)
    table(listed, columns, as_json=as_json, nothing="no jobs")


@app.command("show")
def show_job(context: typer.Context, job: JobArgument, as_json: AsJson = False) -> None:
    """Show a job: spec, state, progress, result."""
    with open_client(context) as client:
        fields = asdict(client.jobs.get(job).job)
    if as_json:
        show(fields, as_json=True)
    else:
        show({name: field for name, field in fields.items() if field or name == "attempt"}, as_json=False)


@app.command("watch")
def watch_job(
    context: typer.Context,
    job: JobArgument,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Show the run's log lines too.")] = False,
    cursor: Annotated[str, typer.Option(help="Go on after this event.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON event a line.")] = False,
) -> None:
    """Show a job's events until it is over; the exit code is 1 where it failed or was cancelled."""
    from madpo_client.progress import JobView

    with open_client(context) as client:
        handle = client.jobs.get(job)
        if as_json:
            for event in handle.watch(cursor):
                kind = type(event.event).__name__
                print(json.dumps({**asdict(event), "kind": kind}), flush=True)
        else:
            print(printable(f"{handle.id}  {handle.job.display_name}"), file=sys.stderr)
            with (
                said_when_interrupted(f"the job goes on; `madpo job cancel {handle.id}` stops it"),
                JobView(handle.job, log=log) as view,
            ):
                for event in handle.watch(cursor):
                    view.show(event)
        if handle.state is not JobState.SUCCEEDED:
            raise typer.Exit(1)


@app.command("logs")
def job_logs(
    context: typer.Context,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it prints until it is over.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt; the newest unless given.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=0, help="Only the last lines; all unless given.", show_default=False)
    ] = None,
) -> None:
    """Show what a job's run printed; of an attempt that has ended, the last mebibyte."""
    if follow and attempt is not None:
        raise typer.BadParameter("--follow shows the newest attempt; leave --attempt out")
    with open_client(context) as client:
        handle = client.jobs.get(job)
        if follow:
            for line in handle.follow_logs(tail=tail):
                print(printable(line), flush=True)
            return
        lines = handle.logs(attempt).splitlines()
        print(printable("\n".join(lines if tail is None else lines[max(0, len(lines) - tail) :])))


@app.command("cancel")
def cancel_job(context: typer.Context, job: JobArgument, as_json: AsJson = False) -> None:
    """Cancel a job; a running one writes a last checkpoint first."""
    with open_client(context) as client:
        cancelled = client.jobs.get(job).cancel()
    if as_json:
        show(cancelled, as_json=True)
    elif cancelled.state is JobState.RUNNING:
        print(f"{cancelled.job_id} writes a last checkpoint and ends; `madpo job resume` goes on from it")
    else:
        print(f"{cancelled.job_id} is {cancelled.state.value}")


@app.command("resume")
def resume_job(context: typer.Context, job: JobArgument, wait: Wait = True, as_json: AsJson = False) -> None:
    """Take a failed or cancelled job up again, as itself, from its newest checkpoint."""
    with open_client(context) as client:
        handle = client.jobs.get(job)
        handle.resume()
        follow(handle, wait=wait, as_json=as_json)


@app.command("delete")
def delete_jobs(
    context: typer.Context,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help=JOB_HELP, autocompletion=complete_jobs)],
    as_json: AsJson = False,
) -> None:
    """Delete jobs that are over, with their checkpoints and artifacts; models they made stay."""

    def delete(client: "Client") -> Iterator[str]:
        for job in jobs:
            found = client.jobs.get(job)
            found.delete()
            yield found.id

    with open_client(context) as client:
        show_deleted(delete(client), as_json=as_json)


@app.command("artifacts")
def job_artifacts(
    context: typer.Context,
    job: JobArgument,
    out: Annotated[Path | None, typer.Option(help="Download them into this directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """List or download what a job left: reports, plots, metrics, ledger."""
    with open_client(context) as client:
        handle = client.jobs.get(job)
        if out is not None:
            handle.download_artifacts(out)
        table(handle.artifacts(), _FILES, as_json=as_json, nothing="no artifacts yet")
