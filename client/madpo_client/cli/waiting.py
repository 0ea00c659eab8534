"""What commands that create a job have in common: its label, what it waits for, and waiting for it."""

import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from madpo.errors import NotFoundError
from madpo.types import JobKind
from madpo_client.cli.arguments import complete_jobs
from madpo_client.cli.context import said_when_interrupted
from madpo_client.cli.output import show
from madpo_client.printable import printable

if TYPE_CHECKING:
    from madpo.types import Job
    from madpo_client.job import JobHandle

Name = Annotated[
    str,
    typer.Option(
        help="A name, also to refer to it by; by default made of the model's and the method's.", show_default=False
    ),
]
After = Annotated[
    list[str],
    typer.Option(
        "--after", metavar="JOB", help="A job that must succeed first; repeatable.", autocompletion=complete_jobs
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the job is over.")]


def follow(job: "JobHandle", *, wait: bool, as_json: bool = False) -> None:
    """Print the id, which scripts read; then the progress, and the figures of the result.

    As JSON one document: the job, once it is over if it is waited for; with the `report` of an evaluation.
    """
    done = wait_for(job, wait=wait, quiet=as_json)
    report = None
    if done is not None and done.kind is JobKind.EVALUATION:
        with suppress(NotFoundError):  # the warnings say so
            report = job.report()
    if as_json:
        extra = {} if report is None else {"report": report.model_dump(mode="json")}
        show({**asdict(job.job), **extra}, as_json=True)
    elif report is not None:
        from madpo_client.cli.evaluation import show_evaluation

        show_evaluation(report, names=job.names_of([each for result in report.results for each in result.versus]))
    elif done is not None and done.result is not None:
        left = {"model_id": done.result.model_id, "dataset_id": done.result.dataset_id}
        show({name: given for name, given in left.items() if given} | dict(done.result.summary), as_json=False)


def wait_for(job: "JobHandle", *, wait: bool, quiet: bool = False) -> "Job | None":
    """Print the id, which scripts read, unless `quiet`; then the progress. None without waiting."""
    if not quiet:
        print(job.id, flush=True)
    if not wait:
        return None
    with said_when_interrupted(
        f"the job goes on; `madpo job watch {job.id}` shows it, `madpo job cancel {job.id}` stops it"
    ):
        done = job.wait(progress=True)
    for warning in done.result.warnings if done.result is not None else ():
        print(printable(f"warning: {warning}"), file=sys.stderr)
    return done
