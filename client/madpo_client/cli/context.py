"""The gateway the command line names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from madpo_client.client import Client

Server = Annotated[str | None, typer.Option(help="Gateway, HOST:PORT (MADPO_SERVER, else the stack of `madpo up`).")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the bearer token (MADPO_TOKEN_FILE).")]


def connect(context: typer.Context, server: Server = None, token_file: TokenFile = None) -> None:
    """Callback of the whole command: keeps its options for the verbs."""
    context.obj = (server, token_file)


def names_server(context: typer.Context) -> bool:
    """Whether a gateway was asked for, rather than a stack of one's own."""
    from madpo_client.settings import ClientSettings

    return bool(context.obj[0] or ClientSettings().server)


def open_client(context: typer.Context) -> "Client":
    """A client of the gateway that was asked for, or of the embedded stack."""
    from madpo_client.client import Client

    server, token_file = context.obj
    return Client.from_environment(server=server, token_file=token_file)
