"""`madpo job`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, show, table

app = typer.Typer(no_args_is_help=True, help="Follow, cancel and look into jobs.")


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
