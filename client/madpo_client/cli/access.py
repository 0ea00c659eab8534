"""`madpo token`, `madpo whoami` and `madpo audit`."""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from madpo.types import AccessToken, Role
from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, Column, show, size_text, table, time_text
from madpo_client.cli.spans import parse_since, parse_size, parse_span

app = typer.Typer()
tokens = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens for people and programs (for admins).")


@tokens.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is; lower-case letters, digits, '.', '_', '-'.")],
    role: Annotated[
        Role,
        typer.Option(help="read: look at everything. submit: also upload, start, cancel, delete. admin: also tokens."),
    ] = Role.SUBMIT,
    expires: Annotated[
        float | None,
        typer.Option(metavar="SPAN", parser=parse_span, help="When it ends: 12h, 30d, 8w; without it never."),
    ] = None,
    unfinished_jobs: Annotated[int | None, typer.Option(min=1, help="Most jobs of it that are not over.")] = None,
    calls_per_minute: Annotated[int | None, typer.Option(min=1, help="Most calls a minute to one gateway.")] = None,
    upload_bytes_per_day: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_size, help="Most bytes a day it brings to one gateway: 500MB, 20GB."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the secret to this new file, for its owner alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; its secret is shown now and never again."""
    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists", param_hint="--out")
    with open_client(context) as client:
        token, secret = client.access.create_token(
            name,
            role=role,
            lifetime_s=expires,
            unfinished_jobs=unfinished_jobs,
            calls_per_minute=calls_per_minute,
            upload_bytes_per_day=upload_bytes_per_day,
        )
    if out is not None:
        with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secret}\n")
    if as_json:
        show(asdict(token) | ({} if out else {"secret": secret}), as_json=True)
    elif out is not None:
        print(out)
    else:
        print(f"the secret of {name}, shown only now; give it in a file, as MADPO_TOKEN_FILE:", file=sys.stderr)
        print(secret)


@tokens.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List all named tokens, oldest first; no secrets."""
    with open_client(context) as client:
        found = client.access.tokens()
    columns = (
        Column("name", lambda token: token.name),
        Column("role", lambda token: token.role.value),
        Column("state", _state),
        Column("created", lambda token: time_text(token.create_time), rank=2),
        Column("by", lambda token: token.created_by, rank=3),
        Column("unfinished jobs", lambda token: token.limits.unfinished_jobs, rank=4, is_right=True),
        Column("calls/min", lambda token: token.limits.calls_per_minute, rank=5, is_right=True),
        Column("upload/day", _upload_text, rank=6, is_right=True),
    )
    nothing = "no named tokens; `madpo token create NAME` makes one"
    table(found, columns, as_json=as_json, nothing=nothing)


def _upload_text(token: AccessToken) -> str | None:
    per_day = token.limits.upload_bytes_per_day
    return None if per_day is None else size_text(per_day)


@tokens.command("revoke")
def revoke_token(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")], as_json: AsJson = False
) -> None:
    """End a token for good, at every gateway within seconds."""
    with open_client(context) as client:
        token = client.access.revoke_token(name)
    show(asdict(token), as_json=True) if as_json else print(f"revoked {token.name}")


@app.command("whoami")
def show_caller(context: typer.Context, as_json: AsJson = False) -> None:
    """Show whose token is used here, and its role."""
    with open_client(context) as client:
        show(client.access.caller(), as_json=as_json)


@app.command("audit")
def show_audit(
    context: typer.Context,
    since: Annotated[str, typer.Option(metavar="TIME", help="Since when: 90m, 2h, 3d, or a date.")] = "7d",
    caller: Annotated[str, typer.Option(help="Of this token alone.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show who changed what, or tried to, oldest first (for admins)."""
    with open_client(context) as client:
        records = list(client.access.audit(since=parse_since(since), caller=caller))
    columns = (
        Column("time", lambda record: time_text(record.time)),
        Column("caller", lambda record: record.caller),
        Column("call", lambda record: record.method.rpartition("/")[2]),
        Column("code", lambda record: record.code),
        Column("about", lambda record: " ".join(record.subjects), rank=1, shortest=20),
        Column("role", lambda record: record.role.value, rank=4),
        Column("from", lambda record: record.peer, rank=5),
        Column("request", lambda record: record.request_id, rank=6),
    )
    table(records, columns, as_json=as_json, nothing="nothing was changed in this time")


def _state(token: AccessToken) -> str:
    if token.revoke_time is not None:
        return f"revoked {time_text(token.revoke_time)}"
    if token.expire_time is None:
        return "valid"
    word = "valid until" if token.is_valid(time.time()) else "expired"
    return f"{word} {time_text(token.expire_time)}"
