"""`madpo retention`."""

from typing import Annotated

import typer

from madpo_client.cli.context import open_client
from madpo_client.cli.output import AsJson, Column, show, size_text, table
from madpo_client.progress import describe_span

app = typer.Typer(no_args_is_help=True, help="Apply the gateway's rules of what is kept, and for how long; pin things.")

Thing = Annotated[
    str, typer.Argument(metavar="THING", help="Job, model or dataset, by id, the beginning of one, name, or @last.")
]


@app.command("apply")
def apply_retention(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove now what the gateway's rules say (for admins)."""
    with open_client(context) as client:
        removals = list(client.retention.apply(dry_run=dry_run))
    columns = (
        Column("kind", lambda removal: removal.kind),
        Column("thing", lambda removal: removal.thing_id),
        Column("name", lambda removal: removal.display_name, rank=2, shortest=12),
        Column("size", lambda removal: size_text(removal.size_bytes), rank=1, is_right=True),
        Column("age", lambda removal: describe_span(removal.age_s), rank=3, is_right=True),
    )
    verb = "would be removed" if dry_run else "was removed"
    table(removals, columns, as_json=as_json, nothing=f"nothing {verb}")
    if removals and not as_json:
        freed = size_text(sum(removal.size_bytes for removal in removals))
        print(f"\n{len(removals):,} of them, {freed}, {'would be' if dry_run else 'were'} removed")


@app.command("pin")
def pin(context: typer.Context, thing: Thing, as_json: AsJson = False) -> None:
    """Keep a job, model or dataset whatever the rules say, with all that a job refers to."""
    with open_client(context) as client:
        thing_id = client.retention.pin(thing)
    show({"pinned": thing_id}, as_json=True) if as_json else print(f"pinned {thing_id}")


@app.command("unpin")
def unpin(context: typer.Context, thing: Thing, as_json: AsJson = False) -> None:
    """Leave it to the rules again."""
    with open_client(context) as client:
        thing_id = client.retention.unpin(thing)
    show({"unpinned": thing_id}, as_json=True) if as_json else print(f"unpinned {thing_id}")


@app.command("pins")
def list_pins(context: typer.Context, as_json: AsJson = False) -> None:
    """List all that is pinned."""
    with open_client(context) as client:
        pins = [{"thing": thing_id} for thing_id in client.retention.pins()]
    table(pins, (Column("thing", lambda pin: pin["thing"]),), as_json=as_json, nothing="nothing is pinned")
