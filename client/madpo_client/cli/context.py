"""The gateway the command line names."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from madpo_client.client import Client


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"madpo {version('madpo')}")
        raise typer.Exit


Server = Annotated[str | None, typer.Option(help="Gateway, HOST:PORT (MADPO_SERVER, else the stack of `madpo up`).")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the bearer token (MADPO_TOKEN_FILE).")]
TlsCa = Annotated[Path | None, typer.Option(help="Authority of the gateway's certificate (MADPO_TLS_CA).")]
TlsCert = Annotated[
    Path | None, typer.Option(help="Certificate to show, where the gateway asks for one (MADPO_TLS_CERT).")
]
TlsKey = Annotated[Path | None, typer.Option(help="Its key (MADPO_TLS_KEY).")]
Plaintext = Annotated[
    bool | None,
    typer.Option("--plaintext", help="No TLS to another host: the token can be read on the way (MADPO_PLAINTEXT)."),
]
Profile = Annotated[str | None, typer.Option(help="Gateway of this name in ~/.madpo/config.toml (MADPO_PROFILE).")]


Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)]

_OPTIONS = ("server", "token_file", "tls_ca", "tls_cert", "tls_key", "plaintext", "profile")
"""What names a gateway, as `madpo_client.settings.ConnectionOptions` calls it."""


def connect(
    context: typer.Context,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    plaintext: Plaintext = None,
    profile: Profile = None,
    version: Version = False,
) -> None:
    """Callback of the whole command: keeps its options for the verbs."""
    context.obj = {name: value for name, value in context.params.items() if name in _OPTIONS}


def names_server(context: typer.Context) -> bool:
    """Whether a gateway was asked for, rather than a stack of one's own."""
    from madpo_client.settings import client_settings

    return bool(client_settings(**context.obj).server)


def quiet_client(context: typer.Context) -> "Client":
    """A client for what goes on beside a command, such as its completion: it says nothing."""
    from madpo_client.client import Client

    return Client.from_environment(**_connection(context))


def _connection(context: typer.Context) -> Any:
    """The options of the whole command. While a shell completes, they are read but not yet kept."""
    return context.obj or {name: value for name, value in context.find_root().params.items() if name in _OPTIONS}


class _Saying(logging.Handler):
    """Log lines that are for people, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


_SAYING = _Saying()


def open_client(context: typer.Context) -> "Client":
    """A client of the gateway that was asked for, or of the embedded stack.

    Which id a name was taken for, and which commit a revision, is said on standard error.
    """
    from madpo_client import hub, lookup
    from madpo_client.client import Client

    for logger in (hub.logger, lookup.logger):
        logger.setLevel(logging.INFO)
        logger.addHandler(_SAYING)
    return Client.from_environment(**context.obj)


@contextmanager
def said_when_interrupted(what: str) -> Iterator[None]:
    """Say what an interrupt leaves, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(what, file=sys.stderr)
        raise
