"""Ways for a tokenizing process to end, as functions that are asked of it."""

import os
import signal
from pathlib import Path
from typing import Any


def pid(_: Any) -> int:
    """Of the process."""
    return os.getpid()


def end_by(_: Any, signum: int) -> None:
    """Whatever ends it by this signal."""
    os.kill(os.getpid(), signum)
    signal.pause()


def crash_once(_: Any, mark: Path) -> str:
    """The first process crashes, the one after it does not."""
    if not mark.exists():
        mark.touch()
        end_by(_, signal.SIGSEGV)
    return "answered"


def exit_with(_: Any, code: int) -> None:
    """A defect of ours."""
    os._exit(code)


def panic(_: Any) -> None:
    """As a library does whose exceptions are no Exception."""
    raise BaseException("index out of bounds")


def spin(_: Any) -> None:
    """For ever."""
    while True:
        pass


def hoard(_: Any) -> bytes:
    """More memory than there may be."""
    return bytes(64 << 30)
