"""The ports of a stack. Gateway and console keep theirs over restarts, since people and programs write them down."""

import errno
import socket
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from madpo.errors import FailedPreconditionError, InvalidArgumentError

HOST = "127.0.0.1"

_FILE = "gateway_port"
_CONSOLE_FILE = "console_port"
_FIRST, _COUNT = 20_000, 10_000
"""Ports below those that systems hand out for outgoing connections (32768 and up): nobody gets one by chance."""
_TRIED = 100


def gateway_port(home: Path, asked: int | None = None) -> int:
    """The port of the gateway of a home: as asked, or as before, or one found by the home's path; it is remembered.

    Args:
        home: Of the stack.
        asked: This one; 0 is another than before.

    Raises:
        FailedPreconditionError: Another program listens on it; says which, where that can be known.
        InvalidArgumentError: There is no such port, or the file with the remembered one holds something else.
    """
    port = _remembered(home / _FILE) if asked is None else asked
    if port:
        if not 0 < port < 2**16:
            raise InvalidArgumentError(f"port {port} does not exist: give one from 1 to {2**16 - 1}, or 0 for any")
        _require_free(port, home)
    else:
        port = _found(str(home), besides=_remembered(home / _FILE))
    (home / _FILE).write_text(f"{port}\n")
    return port


def console_port(home: Path, *, besides: int) -> int:
    """The port of the console of a home: as before, while nobody else listens there; it is remembered."""
    path = home / _CONSOLE_FILE
    port = _remembered(path)
    if port is None or port == besides or not is_free(port):
        port = _found(f"{home}/console", besides=besides)
    path.write_text(f"{port}\n")
    return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of loopback."""
    with socket.socket() as candidate:
        # Connections that were closed a moment ago do not matter.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_ports(count: int) -> Sequence[int]:
    """Ports nobody listens on; all are held until the last is chosen, so they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _found(name: str, *, besides: int | None) -> int:
    """A free port, the same for the same name where it can be."""
    start = zlib.crc32(name.encode()) % _COUNT
    ports = (_FIRST + (start + step) % _COUNT for step in range(_TRIED))
    return next((each for each in ports if each != besides and is_free(each)), None) or free_ports(1)[0]


def _remembered(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InvalidArgumentError(f"{path} holds no port: delete it") from error


def _require_free(port: int, home: Path) -> None:
    if not is_free(port):
        raise FailedPreconditionError(
            f"port {port}, the gateway's of {home}, cannot be had: {_holder(port)}; stop that, or give another by "
            "`madpo up --port PORT` or MADPO_PORT (0: any that is free)"
        )


def _holder(port: int) -> str:
    import psutil

    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pid = next((each.pid for each in listening if each.laddr.port == port and each.pid), None)
        if pid is not None:
            return f"{psutil.Process(pid).name()} (process {pid}) listens on it"
    except psutil.Error:
        pass
    return "another program listens on it"
