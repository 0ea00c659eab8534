"""`madpo init`: what `docker compose` needs before it starts."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from madpo_client.cli.output import AsJson, show

app = typer.Typer()


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(help="Where docker-compose.yml is.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Make random secrets and a client token for `docker compose`; keeps what is there."""
    from madpo_client.secrets_directory import prepare

    prepared = prepare(directory)
    if as_json:
        files = {"made": [str(path) for path in prepared.made], "kept": [str(path) for path in prepared.kept]}
        show({**files, "gateway": prepared.gateway}, as_json=True)
        return
    for path in prepared.made:
        print(f"made  {path}")
    for path in prepared.kept:
        print(f"kept  {path}")
    elsewhere = "" if directory.absolute() == Path.cwd() else f"--env-file {shlex.quote(str(directory / '.env'))} "
    token_file = shlex.quote(str(directory / "secrets" / "client_token"))
    print(
        f"\nnext:  docker compose {elsewhere}up --detach --wait\n"
        f"then:  madpo --server {prepared.gateway} --token-file {token_file} job list"
    )
