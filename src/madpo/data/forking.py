"""Processes forked from one that has imported what they need and done nothing else.

To import transformers takes most of a second; to fork a process that has done so, some milliseconds, and what was
imported is in memory once. The process that forks is started afresh, so that no thread or lock of its parent is in it,
and starts no thread itself. For each process there is a channel between who asked for it and who forked it: one end
tells how the process ended; and when the other end closes, if only because who held it is no more, the process is
killed, by its own parent, which cannot mistake another one for it.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import IO

_LONGEST_REQUEST = 64 << 10
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Other threads of numpy's libraries would be missing in what is forked."""


class Forked:
    """A process as who asked for it has it.

    Attributes:
        stdin: What it reads.
        stdout: What it writes.
    """

    def __init__(self, channel: socket.socket, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin, self.stdout = stdin, stdout
        self._channel, self._code = channel, ""
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """How it ended, as `subprocess` gives it; None if it has not within the time.

        As if killed where nobody can say any more.
        """
        with self._lock:
            if not self._code:
                if not has_something(self._channel, within_s=timeout_s):
                    return None
                with contextlib.suppress(ConnectionError):
                    self._code = self._channel.recv(16).decode()
                self._code = self._code or str(-signal.SIGKILL)
            return int(self._code)

    def kill(self) -> None:
        """Have it end, and do not wait for that."""
        with contextlib.suppress(OSError):  # it has ended, or who would kill it
            self._channel.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill it, wait for its end, and close its pipes."""
        self.kill()
        self.wait()
        self._channel.close()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more
                pipe.close()


class Forker:
    """Starts processes of a program that calls `serve`. May be used from several threads.

    Args:
        module: The program, as `python -m` has it; it is given the number of a file.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self, arguments: Sequence[str]) -> Forked:
        """A new process, which may still be about to start. Raises OSError where there can be none."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            channel, their_channel = socket.socketpair()
            ours.callback(channel.close)
            theirs.callback(their_channel.close)
            their_input, our_input = os.pipe()
            stdin = ours.enter_context(os.fdopen(our_input, "wb"))
            theirs.callback(os.close, their_input)
            our_output, their_output = os.pipe()
            stdout = ours.enter_context(os.fdopen(our_output, "rb"))
            theirs.callback(os.close, their_output)
            self._send(json.dumps(arguments).encode(), [their_channel.fileno(), their_input, their_output])
            ours.pop_all()
        return Forked(channel, stdin, stdout)

    def _send(self, request: bytes, files: list[int]) -> None:
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(ConnectionError):  # it was ended from outside: here is another
                    socket.send_fds(self._control, [request], files)
                    return
                self._end()
            socket.send_fds(self._begin(), [request], files)

    def _begin(self) -> socket.socket:
        control, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(number)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                # Functions travel by their names, which have to mean the same there.
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._control = control
        self._end = weakref.finalize(self, _end, control, self._server)
        return control


def _end(control: socket.socket, server: "subprocess.Popen[bytes]") -> None:
    control.close()
    server.wait()


def serve(control: socket.socket) -> list[str] | None:
    """Fork whenever asked to, until `control` closes, and then kill what is left.

    Returns in each forked process with its arguments, and its pipes for standard input and output; and here with None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is interrupted closes `control`
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    processes: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as selector:
        for each in (control, woken):
            selector.register(each, selectors.EVENT_READ)
        while True:
            for ready in [key.fileobj for key, _ in selector.select()]:
                if ready is control:
                    request, files, *_ = socket.recv_fds(control, _LONGEST_REQUEST, 3)
                    if not files:
                        _kill_all(processes)
                        return None
                    channel, pid = _fork(files)
                    if pid == 0:
                        _become_a_process_of_its_own([control, *processes, channel], [woken, waker])
                        arguments: list[str] = json.loads(request)
                        return arguments
                    if pid is not None:
                        processes[channel] = pid
                        selector.register(channel, selectors.EVENT_READ)
                elif isinstance(ready, socket.socket):
                    selector.unregister(ready)
                    os.kill(processes[ready], signal.SIGKILL)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
            _tell_of_the_ended(processes, selector)


def _fork(files: Sequence[int]) -> tuple[socket.socket, int | None]:
    """The channel of a new process, and its number: 0 in itself, None where there can be none."""
    channel = socket.socket(fileno=files[0])
    try:
        pid = os.fork()
    except OSError:
        channel.close()
        pid = None
    if pid == 0:
        for number, file in enumerate(files[1:]):
            os.dup2(file, number)
    for file in files[1:]:
        os.close(file)
    return channel, pid


def _become_a_process_of_its_own(sockets: Sequence[socket.socket], files: Sequence[int]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in sockets:
        each.close()
    for file in files:
        os.close(file)


def _tell_of_the_ended(processes: dict[socket.socket, int], selector: selectors.BaseSelector) -> None:
    for channel, pid in list(processes.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del processes[channel]
            with contextlib.suppress(KeyError):  # who asked for it had it killed
                selector.unregister(channel)
            with contextlib.suppress(OSError):  # nobody wants to know
                channel.send(str(os.waitstatus_to_exitcode(status)).encode())
            channel.close()


def _kill_all(processes: dict[socket.socket, int]) -> None:
    for pid in processes.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def has_something(file: IO[bytes] | socket.socket, *, within_s: float | None) -> bool:
    """Whether there is something to read, if only the end."""
    poll = select.poll()  # `select.select` knows no file beyond the first thousand
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if within_s is None else within_s * 1000))
