"""The files of the embedded queue: what its server says of them, and what can be done about damage."""

import re
from pathlib import Path

from madpo.errors import FailedPreconditionError

_DAMAGED = re.compile(
    r"Bad file format reading the append only file|Internal error in RDB reading|Unable to obtain the AOF file"
    r"|Invalid AOF manifest|AOF MANIFEST FILE ERROR|Unexpected end of file reading the append only file"
)
_NEWER = re.compile(r"Can't handle RDB format version")
_CUT = re.compile(r"loaded anyway because aof-load-truncated is enabled")
_FILES = "appendonlydir"


def set_damaged_aside(directory: Path, log: str) -> str | None:
    """Move files that the server cannot load out of its way; says so, or None where it ended for another reason.

    The store remembers every job, and the gateway writes back what the queue has lost.

    Args:
        directory: Of the server.
        log: What it said before it ended.

    Raises:
        FailedPreconditionError: They are whole, but of a newer server.
    """
    if _NEWER.search(log):
        raise FailedPreconditionError(
            f"{directory / _FILES} was written by a newer Valkey than the one installed here: install the madpo that "
            "wrote it, or move it away (the jobs come back from the store)"
        )
    damage = _DAMAGED.search(log)
    if damage is None or not (directory / _FILES).exists():
        return None
    number = next(n for n in range(1, 10_000) if not (directory / f"damaged-{n}").exists())
    aside = directory / f"damaged-{number}"
    (directory / _FILES).rename(aside)
    return (
        f"the queue's files were damaged ({damage[0]}) and are now in {aside}: the queue begins empty, and the jobs "
        "come back from the store; those that were running start again at their last checkpoint"
    )


def describe_cut(log: str) -> str | None:
    """What to say where the server loaded files whose end was missing."""
    if not _CUT.search(log):
        return None
    return "the end of the queue's file was missing, as after a crash: what changed in its last moments is lost"
