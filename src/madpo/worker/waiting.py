"""A process that has imported what runs take, as it waits for its workspace, and the copies that it leaves of itself.

It hears from its supervisor by a socket, which is its standard input: once, with the directory of the workspace and
the file that it prints to from then on. Before it begins it forks: a copy in a session of its own waits in its place,
for the attempt after this one, and the supervisor is given the number and the socket of that. To fork takes
milliseconds, and what was imported is in memory once.

The copy's parent is the supervisor, which adopts it: nothing is between them that could end, and a copy is watched and
killed like a process that the supervisor started. It waits until it is told something, or nobody is left who could.
"""

import contextlib
import ctypes
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LONGEST_MESSAGE = 64 << 10
_PR_SET_CHILD_SUBREAPER = 36
_TASKS = Path("/proc/self/task")


@contextlib.contextmanager
def adopting() -> Iterator[bool]:
    """Be the parent of what descendants leave behind meanwhile; yields whether this system has such."""
    adopts = sys.platform == "linux" and _set_subreaper(True)
    try:
        yield adopts
    finally:
        if adopts:
            _set_subreaper(False)


def _set_subreaper(on: bool) -> bool:
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0)


@dataclass(frozen=True, slots=True)
class Order:
    """What a waiting process is told: where its workspace is, and whether it leaves a copy first."""

    workspace: Path
    leaves_copy: bool


def tell(process: socket.socket, order: Order, log: BinaryIO) -> None:
    """Have the process begin, its output in `log`. Raises OSError when it does not listen any more."""
    message = json.dumps({"workspace": str(order.workspace), "leaves_copy": order.leaves_copy})
    socket.send_fds(process, [message.encode()], [log.fileno()])


def await_order() -> Order | None:
    """Of the supervisor at standard input; from then on output goes where it says. None when it is gone."""
    try:
        with socket.socket(fileno=os.dup(0)) as supervisor:
            message, files, *_ = socket.recv_fds(supervisor, _LONGEST_MESSAGE, 1)
    except OSError:
        return None
    if not files:
        return None
    for output in (1, 2):
        os.dup2(files[0], output)
    os.close(files[0])
    value = json.loads(message)
    return Order(Path(value["workspace"]), value["leaves_copy"])


def stop_listening() -> None:
    """From now on there is nothing at standard input."""
    _let_be_nothing(0)


def leave_copy() -> bool:
    """Fork a copy that waits, and tell the supervisor of it; True in the copy.

    There is none where something prevents it: an attempt needs no copy. Nor beside threads: it would be without them,
    and for ever without the locks that they hold.
    """
    if not _is_alone():
        return False
    theirs, its = socket.socketpair()
    said, says = os.pipe()
    is_copy = False
    try:
        pid = os.fork()
        if pid == 0:
            is_copy = _become_the_copy(says, its)
        os.close(says)
        says = -1
        if not is_copy:
            number = os.read(said, 32)
            os.waitpid(pid, 0)  # the copy is the supervisor's from here on
            if number:
                with socket.socket(fileno=os.dup(0)) as supervisor:
                    socket.send_fds(supervisor, [number], [theirs.fileno()])
    except OSError:
        return is_copy
    finally:
        for end in (said, says):
            if end >= 0:
                os.close(end)
        theirs.close()
        its.close()
    return is_copy


def left_copy(process: socket.socket) -> tuple[int, socket.socket] | None:
    """The number and the socket of the copy that a process has left; None where there is none, or none yet."""
    process.setblocking(False)
    try:
        number, files, *_ = socket.recv_fds(process, 32, 1)
    except OSError:
        return None
    return (int(number), socket.socket(fileno=files[0])) if files else None


def _become_the_copy(says: int, its: socket.socket) -> bool:
    """In the first fork: fork again and end; True in the second, whose parent is who adopts it."""
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.dup2(its.fileno(), 0)
        for output in (1, 2):
            _let_be_nothing(output)
        os.write(says, str(os.getpid()).encode())  # only now: it is no longer of the group that is killed with the run
    except OSError:
        os._exit(1)  # whatever else it did, it would do as its parent
    return True


def _is_alone() -> bool:
    try:
        return len(list(_TASKS.iterdir())) == 1
    except OSError:
        return False


def _let_be_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, number)
    os.close(nothing)
