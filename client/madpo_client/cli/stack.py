"""`madpo up`, `madpo down`, `madpo status` and `madpo demo`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo_client.cli.context import names_server, open_client
from madpo_client.cli.output import AsJson, Column, table
from madpo_client.extras import needs_extra
from madpo_client.progress import describe_span

if TYPE_CHECKING:
    from madpo_client.embedded import EmbeddedStack

app = typer.Typer()

_PROCESSES = (
    Column("process", lambda row: row["process"]),
    Column("health", lambda row: row["health"], rank=1),
    Column("up", lambda row: describe_span(row["uptime_s"]), rank=3, is_right=True),
    Column("restarts", lambda row: row["restarts"], rank=4, is_right=True),
    Column("port", lambda row: row["port"], rank=5, is_right=True),
    Column("pid", lambda row: row["pid"], rank=6, is_right=True),
    Column("log", lambda row: row["log"], rank=2),
)

_NEXT = """
next   madpo dataset upload FILE       rows to train on (`madpo dataset check FILE` finds what is wrong with them)
       madpo model upload DIRECTORY    a model to start from
       madpo train reward --model MODEL --dataset DATASET
       madpo job list                  what is going on
stop   madpo down                      everything stays; jobs go on at the next `madpo up`"""

DEFAULT_DEMO = "toy-reviews"
Home = Annotated[Path | None, typer.Option(help="State of the stack (MADPO_HOME, else ~/.madpo).")]


@app.command("up")
def up(
    home: Home = None,
    reward_replicas: Annotated[int, typer.Option(min=0)] = 1,
    trainers: Annotated[int, typer.Option(min=0)] = 1,
    evaluators: Annotated[int, typer.Option(min=0)] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads of each scorer and run.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The gateway's; it is kept for later. 0: any (MADPO_PORT).")
    ] = None,
    with_console: Annotated[bool, typer.Option("--console/--no-console", help="Pages to look at in a browser.")] = True,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, log here, stop with Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start all services on this machine."""
    from madpo_client.embedded import EmbeddedStack

    stack = EmbeddedStack(
        home,
        reward_replicas=reward_replicas,
        trainers=trainers,
        evaluators=evaluators,
        threads=threads,
        port=port,
        console=with_console,
    )
    if foreground:
        from madpo_client.embedded.supervisor import run_in_foreground

        raise typer.Exit(run_in_foreground(stack.home, stack.options))
    with Console(stderr=True).status("starting (the first time takes longest)"):
        stack.start(detached=True)
    for notice in stack.notices:
        print(f"note: {notice}", file=sys.stderr)
    _print_status(stack, as_json=as_json)
    if not as_json:
        print(_NEXT)
        if link := stack.console_link():
            print(f"look   {link}\n       lets one browser in; `madpo console` prints another")


@app.command("console")
def console(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Address of the console, where it is not of the stack of `madpo up`.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print a link that lets a browser into the console, once."""
    from madpo_client.console_link import console_link
    from madpo_client.embedded import EmbeddedStack
    from madpo_client.settings import client_settings

    if url is None:
        link = EmbeddedStack(home).console_link()
        if link is None:
            raise NotFoundError("no console runs on this machine: start one with `madpo up`, or give its --url")
    else:
        token_file = client_settings(**context.obj).token_file
        if token_file is None:
            raise InvalidArgumentError("a link needs a token: give --token-file, or set MADPO_TOKEN_FILE")
        link = console_link(url, token_file.expanduser().read_text().strip())
    print(json.dumps({"url": link}) if as_json else link)


@app.command("down")
def down(home: Home = None) -> None:
    """Stop the services of this machine; running jobs go on at the next `madpo up`."""
    from madpo_client.embedded import EmbeddedStack

    stack = EmbeddedStack(home)
    if stack.connection() is None:
        print(f"no madpo stack runs under {stack.home}")
        return
    with Console(stderr=True).status("stopping (running jobs write a checkpoint)"):
        stack.stop()


@app.command("status")
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Show the services of this machine; exit code 1 unless all of them serve."""
    from madpo_client.embedded import EmbeddedStack

    if not _print_status(EmbeddedStack(home), as_json=as_json):
        raise typer.Exit(1)


def _print_status(stack: "EmbeddedStack", *, as_json: bool = False) -> bool:
    statuses = stack.status()
    if not statuses and not as_json:
        print(f"no madpo stack runs under {stack.home}; start one with `madpo up`")
        return False
    rows = [
        {
            "process": status.process.name,
            "pid": status.process.pid,
            "port": status.process.port,
            "health": "serving" if status.is_serving else status.process.failure or "not serving",
            "uptime_s": round(status.uptime_s),
            "restarts": status.process.restarts,
            "log": status.process.log,
        }
        for status in statuses
    ]
    table(rows, _PROCESSES, as_json=as_json)
    connection = stack.connection()
    if connection is not None and not as_json:
        print(f"gateway {connection.server}, token file {connection.token_file}")
    return bool(statuses) and all(status.is_serving for status in statuses)


@app.command("demo")
def demo(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which demo.")] = DEFAULT_DEMO,
    out: Annotated[Path | None, typer.Option(help="Where results go; by default ./madpo-NAME.")] = None,
) -> None:
    """Run a demo from data to report, on a stack of its own unless --server or MADPO_SERVER names one."""
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in entry_points(group="madpo.demos")}
    if name not in found:
        raise NotFoundError(f"there is no demo {name!r}; demos: {', '.join(sorted(found))}")
    with needs_extra("embedded", "the demo"):
        run = found[name].load()
    out = (out or Path(f"madpo-{name}")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    if names_server(context):
        with open_client(context) as client:
            run(client=client, out=out)
        return
    from madpo_client.embedded import EmbeddedStack

    with EmbeddedStack(out / "state") as stack, stack.client() as client:
        run(client=client, out=out)
