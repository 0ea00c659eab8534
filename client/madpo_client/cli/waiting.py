"""What commands that create a job have in common: its label, what it waits for, and waiting for it."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from madpo_client.cli.output import show

if TYPE_CHECKING:
    from madpo.types import Job
    from madpo_client.job import JobHandle

Name = Annotated[str, typer.Option(help="A label for people.", show_default=False)]
After = Annotated[list[str], typer.Option("--after", metavar="JOB", help="A job that must succeed first; repeatable.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the job is over.")]


def follow(job: "JobHandle", *, wait: bool) -> None:
    """Print the id, which scripts read; then the progress, and the figures of the result."""
    done = wait_for(job, wait=wait)
    if done is not None and done.result is not None:
        show({"model_id": done.result.model_id, **done.result.summary}, as_json=False)


def wait_for(job: "JobHandle", *, wait: bool, quiet: bool = False) -> "Job | None":
    """Print the id, which scripts read, unless `quiet`; then the progress. None without waiting."""
    if not quiet:
        print(job.id, flush=True)
    if not wait:
        return None
    try:
        return job.wait(progress=True)
    except KeyboardInterrupt:
        print(f"the job goes on; `madpo job cancel {job.id}` stops it", file=sys.stderr)
        raise
