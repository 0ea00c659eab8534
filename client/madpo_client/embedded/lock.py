"""One stack per home directory: the supervisor holds a file lock, which the system frees whatever ends it."""

import fcntl
import os
import time
from pathlib import Path

from madpo.errors import FailedPreconditionError

_TRIES = 10
_TRY_PERIOD_S = 0.05


def acquire(home: Path) -> int:
    """Take the home; returns the descriptor that holds it.

    Raises:
        FailedPreconditionError: Another stack has it.
    """
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(_TRIES):  # `is_held` takes the lock for an instant
        if _flock(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(_TRY_PERIOD_S)
    os.close(descriptor)
    raise FailedPreconditionError(f"a madpo stack is already running under {home}; `madpo down` stops it")


def is_held(home: Path) -> bool:
    """Whether a stack runs under the home."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
