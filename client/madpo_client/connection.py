"""The connection file of an embedded stack: where its gateway is, and which processes it consists of.

The stack's supervisor writes `HOME/connection.json` anew at every change and removes it at the end; everybody else
only reads it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from madpo.errors import InvalidArgumentError

_FILE = "connection.json"


@dataclass(frozen=True, slots=True)
class StackProcess:
    """One process of a stack. Times are seconds since the epoch."""

    name: str
    pid: int
    port: int
    start_time: float
    log: str
    restarts: int = 0
    failure: str = ""
    """How it ended, when it is not running."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A stack that was started; `ready` once all of it has answered."""

    server: str
    token_file: str
    pid: int
    """Of the supervisor."""
    ready: bool
    processes: Sequence[StackProcess]


def read_connection(home: Path) -> Connection | None:
    """The connection file's content, or None without one; a stack that was killed leaves its file behind.

    Raises:
        InvalidArgumentError: The file is not one this version writes.
    """
    path = home / _FILE
    try:
        value = json.loads(path.read_text())
        return Connection(**{**value, "processes": tuple(StackProcess(**process) for process in value["processes"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgumentError(f"{path} is no connection file of this version; delete it") from error


def write_connection(home: Path, connection: Connection) -> None:
    """Replace the connection file; readable by its owner alone."""
    scratch = home / f".{_FILE}"
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(connection), file, indent=2)
    os.replace(scratch, home / _FILE)


def remove_connection(home: Path) -> None:
    """Remove the record of a running stack."""
    (home / _FILE).unlink(missing_ok=True)
