"""`madpo backup` and `madpo restore`."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from madpo_client.cli.output import AsJson, Column, show, size_text, table, time_text
from madpo_client.extras import needs_extra

if TYPE_CHECKING:
    from madpo.storage.snapshots import Snapshot, Snapshots
    from madpo_client.store_access import StoreAccess

app = typer.Typer()

Place = Annotated[str, typer.Argument(metavar="PLACE", help="Directory or s3://bucket/prefix that holds backups.")]
Home = Annotated[
    Path | None, typer.Option(help="Of the embedded stack (MADPO_HOME, else ~/.madpo). Not where a service runs.")
]
_PRIVATE = 0o077


@app.command("backup")
def backup(
    place: Place,
    home: Home = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only list the backups that are there.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of the newest backup first; copy anew what is damaged.")
    ] = False,
    keep: Annotated[int | None, typer.Option(min=1, help="Remove what is older than the newest so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Back up everything the installation knows: the object store, from which the queue is rebuilt.

    Runs where the store can be reached: on the machine of an embedded stack, or in the container of a service; jobs and
    uploads go on, a second backup to the same place does not. Content that is there already is not copied again. Exit
    code 1 when something was damaged, in the store or among the backups.
    """
    access, snapshots = _open(place, home)
    if list_them:
        _show_all(snapshots, as_json=as_json)
        return
    from madpo.storage.backup import back_up
    from madpo.storage.backup import verify as verify_snapshot
    from madpo.storage.snapshots import Pruned

    damaged: list[str] = []
    pruned = Pruned()
    copied = _Counted()
    with Console(stderr=True).status("backing up"):
        access.require_store()
        access.scratch.mkdir(parents=True, exist_ok=True)
        with snapshots.alone():
            if verify and (there := snapshots.all()):
                damaged = verify_snapshot(snapshots, there[-1], scratch=access.scratch)
            snapshot = back_up(access.store(), snapshots, scratch=access.scratch, transfer=copied.transfer)
            if keep:
                pruned = snapshots.prune(keep)
            unreadable = snapshots.unreadable()
    _say("damaged in the backup, copied anew where the store has it", damaged)
    _say("a backup that cannot be read, passed over", unreadable)
    _say("damaged in the store, not in this backup", snapshot.damaged)
    _say("no content was removed, since what cannot be read may hold it", pruned.holding)
    if as_json:
        show({**_row(snapshot), "copied_bytes": copied.size_bytes, "removed": len(pruned.removed)}, as_json=True)
    else:
        print(
            f"{snapshot.name}: {snapshot.objects:,} objects, {size_text(snapshot.size_bytes)}, of which "
            f"{size_text(copied.size_bytes)} were copied now"
        )
    if damaged or unreadable or snapshot.damaged or pruned.holding:
        raise typer.Exit(1)


@app.command("restore")
def restore(
    place: Place,
    snapshot: Annotated[str | None, typer.Option(help="Which backup; by default the newest.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write a backup into an empty store, while no service runs; one that was broken off goes on when asked again.

    At the next start the gateway puts all jobs into the queue. Those that were not over go on at their last checkpoint.
    """
    access, snapshots = _open(place, home)
    from madpo.storage.backup import restore as restore_snapshot
    from madpo_client.store_access import require_idle

    wanted = snapshots.named(snapshot)
    require_idle(access)
    with Console(stderr=True).status("restoring"):
        access.scratch.mkdir(parents=True, exist_ok=True)
        restore_snapshot(access.store(), snapshots, wanted, scratch=access.scratch)
    if as_json:
        show(_row(wanted), as_json=True)
    else:
        print(f"{wanted.name} of {time_text(wanted.create_time)}: {wanted.objects:,} objects written back")


def _open(place: str, home: Path | None) -> "tuple[StoreAccess, Snapshots]":
    os.umask(_PRIVATE)  # a backup holds what its store holds: everybody's rows and models
    with needs_extra("embedded", "a command that reads the store itself"):
        from madpo.storage.snapshots import Snapshots
        from madpo_client.store_access import find_store, open_place
    access = find_store(home)
    return access, Snapshots(open_place(place, access))


def _show_all(snapshots: "Snapshots", *, as_json: bool) -> None:
    columns = (
        Column("name", lambda row: row["name"]),
        Column("time", lambda row: time_text(row["create_time"]), rank=1),
        Column("objects", lambda row: f"{row['objects']:,}", rank=2, is_right=True),
        Column("size", lambda row: size_text(row["size_bytes"]), rank=2, is_right=True),
        Column("damaged", lambda row: len(row["damaged"]), rank=3, is_right=True),
        Column("madpo", lambda row: row["madpo"], rank=4),
    )
    table([_row(each) for each in snapshots.all()], columns, as_json=as_json, nothing="there is no backup here")
    if unreadable := snapshots.unreadable():
        _say("a backup that cannot be read", unreadable)
        raise typer.Exit(1)


def _say(what: str, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"{what}: {line}", file=sys.stderr)


def _row(snapshot: "Snapshot") -> dict[str, Any]:
    return {name: value for name, value in asdict(snapshot).items() if name != "index"}


class _Counted:
    """Bytes that threads have copied."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._lock = threading.Lock()

    def transfer(self, name: str, size_bytes: int) -> Callable[[int], None]:
        """A `Transfer`."""
        return self._passed

    def _passed(self, count: int) -> None:
        with self._lock:
            self.size_bytes += count
