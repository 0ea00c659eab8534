"""`madpo init`: what `docker compose` needs before it starts."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(help="Where docker-compose.yml is.")] = Path(),
) -> None:
    """Make random secrets and a client token for `docker compose`; keeps what is there."""
    from madpo_client.secrets_directory import prepare

    prepared = prepare(directory)
    for path in prepared.made:
        print(f"made {path}")
    if prepared.kept:
        print(f"kept {len(prepared.kept)} files that were there already")
    print(
        "\nnext:  docker compose up --detach --wait\n"
        f"then:  madpo --server 127.0.0.1:50050 --token-file {directory / 'secrets' / 'client_token'} job list"
    )
