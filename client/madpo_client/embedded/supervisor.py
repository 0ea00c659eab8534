"""The process that owns a stack: starts the others, restarts what crashes, stops them in order.

Nothing it started outlives it. It stops them when asked to (SIGTERM, SIGINT) and, when a program owns the stack, when
that program is gone: its standard input is then a pipe that ends. If it is itself killed, the system kills its
children (`PR_SET_PDEATHSIG`, Linux); elsewhere the next start under the same home ends what is left.
"""

import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from madpo.errors import DeadlineExceededError, FailedPreconditionError, InvalidArgumentError, MadpoError
from madpo_client.connection import Connection, StackProcess, read_connection, remove_connection, write_connection
from madpo_client.embedded import lock
from madpo_client.embedded.health import is_serving
from madpo_client.embedded.home import UMASK, check_home, close_home
from madpo_client.embedded.plan import (
    GATEWAY,
    REDIS,
    ProcessSpec,
    StackOptions,
    make_plan,
    require_packages,
    secret_path,
)
from madpo_client.embedded.ports import HOST
from madpo_client.embedded.queue_files import describe_cut, set_damaged_aside

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
"""Longest time for a group of processes to answer: importing torch on a busy machine takes a while."""
STOP_GRACE_S = 75.0
"""Longest time for a group to end by itself: a trainer writes a checkpoint first."""

_POLL_S = 0.1
_RESTART_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 60.0)
"""Before each new start of a process that crashes again and again; the last holds for all that follow."""
_STEADY_S = 60.0
"""A process that ran this long before it crashed starts over with the delays."""
_TAIL_LINES = 15
_LAST_CHARS = 500
_PR_SET_PDEATHSIG = 1


class Child:
    """One process of the stack over its restarts."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.restarts = 0
        self.failure = ""
        self._crashes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._start_time = 0.0
        # By a clock that nobody sets, unlike the above.
        self._started_at = 0.0
        self._restart_at: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, with its output in its log."""
        import psutil

        die_with_parent = _make_tether()
        with self.spec.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command,
                env={**os.environ, **self.spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone
                preexec_fn=die_with_parent,  # safe: the supervisor has no other Python thread
            )
        # Of the system's own clock, so that the process is known again by pid and start time.
        self._start_time = psutil.Process(self._process.pid).create_time()
        self._started_at, self._restart_at, self.failure = time.monotonic(), None, ""

    def watch(self) -> bool:
        """Notice a crash, or start again when the time has come; True when something changed."""
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self.restarts += 1
            self.start()
            logger.info("%s started again, restart %d", self.spec.name, self.restarts)
            return True
        if self.failure or self.is_running:
            return False
        self._crashes = 1 if time.monotonic() - self._started_at > _STEADY_S else self._crashes + 1
        self.failure = self.describe_end() + _last_line(self.spec.log)
        delay_s = _RESTART_DELAYS_S[min(self._crashes, len(_RESTART_DELAYS_S)) - 1]
        self._restart_at = time.monotonic() + delay_s
        if self._crashes > len(_RESTART_DELAYS_S):
            self.failure += f"; {self._crashes} times in a row, tried again every {delay_s:g} s"
        logger.error("%s %s; see %s", self.spec.name, self.failure, self.spec.log)
        return True

    def describe_end(self) -> str:
        """How the process ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def signal(self, signum: int) -> None:
        """Send a signal: SIGTERM to the process, SIGKILL to everything it started too."""
        if self._process is None or self._process.poll() is not None:
            return
        if signum == signal.SIGKILL:
            os.killpg(self._process.pid, signum)
        else:
            self._process.send_signal(signum)

    def describe(self) -> StackProcess:
        """For the connection file."""
        return StackProcess(
            name=self.spec.name,
            pid=0 if self._process is None else self._process.pid,
            port=self.spec.port,
            start_time=self._start_time,
            log=str(self.spec.log),
            restarts=self.restarts,
            failure=self.failure,
        )


class Supervisor:
    """Runs a stack until it is asked to stop.

    Args:
        home: Where the stack keeps its state.
        options: What it consists of.
        lifeline: Stop when standard input ends.
    """

    def __init__(self, home: Path, options: StackOptions, *, lifeline: bool) -> None:
        self._home, self._options, self._lifeline = home, options, lifeline
        self._groups: list[list[Child]] = []
        self._ready = False
        self._notices: list[str] = []
        self._has_mended = False
        self._stop = threading.Event()
        self._hurry = False

    def run(self, on_ready: Callable[[Sequence[str]], None]) -> int:
        """Start, watch, stop.

        Args:
            on_ready: Called once every process has answered, with what was found damaged and what was done about it.

        Returns:
            1 when a process was not running at the end, else 0.

        Raises:
            FailedPreconditionError: A stack runs under this home already, the home cannot be used, or a process ended
                while starting.
            DeadlineExceededError: A process did not answer in time.
        """
        os.umask(UMASK)
        self._notice(*close_home(self._home))
        descriptor = lock.acquire(self._home)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        try:
            self._end_leftovers()
            self._notice(*check_home(self._home))
            self._groups = [[Child(spec) for spec in group] for group in make_plan(self._home, self._options)]
            try:
                queue, *others = self._groups
                # All others only need the queue to start.
                if self._start(queue) and self._start([child for group in others for child in group]):
                    self._ready = True
                    self._publish()
                    logger.info("all processes serve")
                    on_ready(self._notices)
                    self._watch()
                failed = [child for child in self._children() if child.failure or not child.is_running]
            finally:
                self._stop_all()
            return 1 if failed else 0
        finally:
            remove_connection(self._home)
            os.close(descriptor)

    def _start(self, group: Sequence[Child]) -> bool:
        """Start processes and wait until all of them answer; False when asked to stop meanwhile."""
        for child in group:
            child.spec.log.parent.mkdir(exist_ok=True)
            if child.spec.log.exists():
                child.spec.log.replace(child.spec.log.with_suffix(".log.1"))
            child.start()
        self._publish()
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(group)
        while waiting:
            if self._should_stop():
                return False
            for child in [child for child in waiting if not child.is_running]:
                if self._is_mended(child):
                    continue
                raise FailedPreconditionError(f"{child.spec.name} {child.describe_end()} while starting{_tail(child)}")
            waiting = [child for child in waiting if not self._is_serving(child)]
            if waiting and time.monotonic() > deadline:
                child = waiting[0]
                raise DeadlineExceededError(
                    f"{child.spec.name} does not answer after {START_TIMEOUT_S:g} s{_tail(child)}"
                )
        for child in group:
            if child.spec.name == REDIS and (cut := describe_cut(child.spec.log.read_text(errors="replace"))):
                self._notice(cut)
        return True

    def _is_mended(self, child: Child) -> bool:
        """Start the queue again without the files it ended over; once, and not for other processes and reasons."""
        if child.spec.name != REDIS or self._has_mended:
            return False
        done = set_damaged_aside(self._home / "redis", child.spec.log.read_text(errors="replace"))
        if done is None:
            return False
        self._has_mended = True
        self._notice(done)
        child.start()
        return True

    def _notice(self, *texts: str) -> None:
        """Say something to whoever starts the stack."""
        for text in texts:
            logger.warning("%s", text)
        self._notices += texts

    def _end_leftovers(self) -> None:
        try:
            connection = read_connection(self._home)
        except InvalidArgumentError as error:
            self._notice(f"{error}: done")
            remove_connection(self._home)
        else:
            _end_leftovers(connection)

    def _watch(self) -> None:
        while not self._should_stop():
            changes = [child.watch() for child in self._children()]
            if any(changes):
                self._publish()

    def _stop_all(self) -> None:
        logger.info("stopping")
        for group in reversed(self._groups):
            for child in group:
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_GRACE_S
            while any(child.is_running for child in group) and time.monotonic() < deadline and not self._hurry:
                time.sleep(_POLL_S)
            for child in group:
                if child.is_running:
                    logger.error("%s did not end in time and is killed", child.spec.name)
                child.signal(signal.SIGKILL)

    def _is_serving(self, child: Child) -> bool:
        return is_serving(child.spec.name, child.spec.port, home=self._home)

    def _children(self) -> Iterator[Child]:
        for group in self._groups:
            yield from group

    def _publish(self) -> None:
        gateway = next(child for child in self._children() if child.spec.name == GATEWAY)
        connection = Connection(
            server=f"{HOST}:{gateway.spec.port}",
            token_file=str(secret_path(self._home, "client_token")),
            pid=os.getpid(),
            ready=self._ready,
            processes=[child.describe() for child in self._children()],
        )
        write_connection(self._home, connection)

    def _should_stop(self) -> bool:
        """Whether to stop now; waits a moment for the answer."""
        if self._lifeline and select.select([sys.stdin], [], [], 0)[0]:
            logger.info("the program that owns the stack is gone")
            return True
        return self._stop.wait(_POLL_S)

    def _on_signal(self, *_: Any) -> None:
        """The first signal stops in order, the second at once."""
        self._hurry = self._stop.is_set()
        self._stop.set()


def _make_tether() -> Callable[[], None] | None:
    """What a new child does first so that it cannot outlive this process."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def tether() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(1)

    return tether


def _end_leftovers(connection: Connection | None) -> None:
    """Kill what a killed supervisor left behind, where the system did not do it."""
    import psutil

    for recorded in connection.processes if connection else ():
        try:
            process = psutil.Process(recorded.pid)
            if recorded.pid and abs(process.create_time() - recorded.start_time) < 1:  # the pid was not used again
                logger.warning("%s of an earlier stack still runs and is killed", recorded.name)
                process.kill()
                process.wait(STOP_GRACE_S)
        except psutil.NoSuchProcess:
            continue


def _last_line(log: Path) -> str:
    """What a process said last, of an error its message."""
    said = [line for line in log.read_text(errors="replace")[-_LAST_CHARS:].splitlines() if line.strip()]
    return f": {said[-1].strip()}" if said else ""


def _tail(child: Child) -> str:
    lines = child.spec.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"; the end of {child.spec.log}:", *lines])


def run_in_foreground(home: Path, options: StackOptions) -> int:
    """Be the supervisor, logging to standard error; the exit code of `Supervisor.run`."""
    require_packages()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return Supervisor(home, options, lifeline=False).run(lambda notices: None)


def main() -> int:
    """The process behind `EmbeddedStack.start`: says on standard output, in one JSON line, how it started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home, options, *rest = sys.argv[1:]

    def report(**fields: Any) -> None:
        print(json.dumps(fields), flush=True)
        # Whoever reads is told once; later output has no reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    try:
        stack = Supervisor(Path(home), StackOptions(**json.loads(options)), lifeline="lifeline" in rest)
        return stack.run(lambda notices: report(notices=list(notices)))
    except MadpoError as error:
        logger.error("%s", error)
        report(error=str(error), kind=type(error).__name__)
        return 1
    except Exception as error:
        logger.exception("the supervisor has failed")
        report(error=f"the stack's supervisor failed: {type(error).__name__}: {error}", kind=type(error).__name__)
        return 1


def command(home: Path, options: StackOptions, *, lifeline: bool) -> list[str]:
    """The command line of a supervisor."""
    arguments = [str(home), json.dumps(asdict(options)), *(["lifeline"] if lifeline else [])]
    return [sys.executable, "-m", "madpo_client.embedded", *arguments]
