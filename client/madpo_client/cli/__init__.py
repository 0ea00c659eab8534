"""The `madpo` command: everything the SDK does, from a shell.

Heavy imports wait inside the commands, so that `madpo --help` answers at once.
"""

import os
import sys

import typer

from madpo.errors import MadpoError
from madpo_client.cli import (
    access,
    align,
    backup,
    calibrate,
    context,
    datasets,
    doctor,
    init,
    jobs,
    ledger,
    methods,
    models,
    retention,
    run,
    score,
    stack,
    store,
)
from madpo_client.extras import MissingExtraError
from madpo_client.printable import printable

app = typer.Typer(
    name="madpo",
    help="Align language models from human preferences with margin-adaptive training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    callback=context.connect,
)
app.add_typer(datasets.app, name="dataset")
app.add_typer(models.app, name="model")
app.add_typer(run.train, name="train")
app.add_typer(run.app)
app.add_typer(align.app)
app.add_typer(calibrate.app)
app.add_typer(score.app)
app.add_typer(methods.app, name="methods")
app.add_typer(jobs.app, name="job")
app.add_typer(ledger.app)
app.add_typer(access.tokens, name="token")
app.add_typer(access.app)
app.add_typer(retention.app, name="retention")
app.add_typer(store.app, name="store")
app.add_typer(stack.app)
app.add_typer(backup.app)
app.add_typer(init.app)
app.add_typer(doctor.app)


def main() -> None:
    """Entry point: errors of ours become one line on standard error and exit code 1, 2 for a missing package."""
    # Before gRPC is imported: its own account of a failed handshake would stand around that line.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        app()
    except MadpoError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2 if isinstance(error, MissingExtraError) else 1)
