"""The gateway the command line names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from madpo_client.client import Client

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


def connect(
    context: typer.Context,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    plaintext: Plaintext = None,
    profile: Profile = None,
) -> None:
    """Callback of the whole command: keeps its options for the verbs."""
    context.obj = {
        "server": server,
        "token_file": token_file,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "plaintext": plaintext,
        "profile": profile,
    }


def names_server(context: typer.Context) -> bool:
    """Whether a gateway was asked for, rather than a stack of one's own."""
    from madpo_client.settings import client_settings

    return bool(client_settings(**context.obj).server)


def open_client(context: typer.Context) -> "Client":
    """A client of the gateway that was asked for, or of the embedded stack."""
    from madpo_client.client import Client

    return Client.from_environment(**context.obj)
