"""A stack as seen from a program: start it, ask how it is, get a client, stop it."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from madpo.errors import DeadlineExceededError, FailedPreconditionError, MadpoError
from madpo_client.connection import Connection, StackProcess, read_connection
from madpo_client.embedded import lock
from madpo_client.embedded.health import is_serving
from madpo_client.embedded.home import close_home
from madpo_client.embedded.plan import CONSOLE, StackOptions, default_threads, require_packages
from madpo_client.embedded.ports import HOST
from madpo_client.embedded.supervisor import STOP_GRACE_S, command
from madpo_client.settings import ClientSettings

if TYPE_CHECKING:
    from madpo_client.client import Client

_POLL_S = 0.05
_STOP_TIMEOUT_S = 3 * STOP_GRACE_S + 15
"""After this long the supervisor itself is killed, and with it the rest."""
_START_ERRORS: dict[str, type[MadpoError]] = {
    error.__name__: error for error in (FailedPreconditionError, DeadlineExceededError)
}


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process of a stack and whether it answers."""

    process: StackProcess
    is_serving: bool

    @property
    def uptime_s(self) -> float:
        """Seconds since it was started last; 0 when it is not running."""
        return 0.0 if self.process.failure else max(0.0, time.time() - self.process.start_time)


class EmbeddedStack:
    """All services of madpo as processes on this machine's loopback; datasets, jobs and models stay in `home`.

    As a context it lives as long as the block, and ends with the program however that ends.

    Args:
        home: Where the state is; None means `MADPO_HOME`, or `~/.madpo`.
        reward_replicas: Scorers.
        trainers: Trainers; each takes one job at a time.
        evaluators: Evaluators; each takes one job at a time.
        threads: Torch threads of each scorer and run; None means half of the cores.
        port: The gateway's; None means `MADPO_PORT`, else the one it had before, and 0 any that is free.
        console: Whether there are pages to look at.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        reward_replicas: int = 1,
        trainers: int = 1,
        evaluators: int = 1,
        threads: int | None = None,
        port: int | None = None,
        console: bool = False,
    ) -> None:
        settings = ClientSettings()
        self.home = settings.expanded_home if home is None else Path(home).expanduser().absolute()
        port = settings.port if port is None else port
        self.options = StackOptions(reward_replicas, trainers, evaluators, threads or default_threads(), port, console)
        self.notices: list[str] = []
        """What the last start found damaged, and what it did about it."""
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self, *, detached: bool = False) -> None:
        """Start everything and wait until all of it answers.

        Args:
            detached: Leave the stack running when this program ends.

        Raises:
            FailedPreconditionError: One runs here already, the home cannot be used, a package is missing, or a process
                ended while starting; then it carries the last lines of its log.
            DeadlineExceededError: A process did not answer in time.
        """
        require_packages()
        logs = self.home / "logs"
        self.notices = close_home(self.home)
        try:
            logs.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise FailedPreconditionError(f"{logs} is in the way of a directory: move it elsewhere") from error
        with open(os.open(logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._supervisor = subprocess.Popen(
                command(self.home, self.options, lifeline=not detached),
                # It forks while it asks for health: gRPC's handlers of forks can abort the child before it is anything.
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
                stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_ready(self._supervisor)
        except BaseException:
            self.stop()
            raise
        if detached:
            self._supervisor = None

    def stop(self) -> None:
        """Stop the stack of this home, whoever started it; nothing to do when none runs.

        Running jobs write a checkpoint and go back to the queue: the next start goes on with them.
        """
        if self._supervisor is not None:
            self._end_supervisor(self._supervisor)
            self._supervisor = None
            return
        connection = self.connection()
        if connection is None:
            return
        os.kill(connection.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while lock.is_held(self.home):
            if time.monotonic() > deadline:
                os.kill(connection.pid, signal.SIGKILL)
                return
            time.sleep(_POLL_S)

    def connection(self) -> Connection | None:
        """Where the running stack is; None when none runs, even if one left its connection file behind."""
        return read_connection(self.home) if lock.is_held(self.home) else None

    def status(self) -> list[ProcessStatus]:
        """Every process of the running stack; empty when none runs."""
        connection = self.connection()
        return [
            ProcessStatus(process, not process.failure and is_serving(process.name, process.port, home=self.home))
            for process in (connection.processes if connection else ())
        ]

    def client(self) -> "Client":
        """A client of the running stack. Raises FailedPreconditionError when none runs."""
        from madpo_client.client import Client

        connection = self.connection()
        if connection is None:
            raise FailedPreconditionError(f"no madpo stack runs under {self.home}; start one with `madpo up`")
        return Client(connection.server, token_file=Path(connection.token_file))

    def console_link(self) -> str | None:
        """A link that lets one browser into the console, once; None where no console runs.

        Raises:
            UnavailableError: It does not answer.
        """
        from madpo_client.console_link import console_link

        connection = self.connection()
        port = next((each.port for each in connection.processes if each.name == CONSOLE), None) if connection else None
        if connection is None or port is None:
            return None
        return console_link(f"http://{HOST}:{port}", Path(connection.token_file).read_text().strip())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_ready(self, supervisor: subprocess.Popen[bytes]) -> None:
        assert supervisor.stdout is not None
        with supervisor.stdout as stdout:
            line = stdout.readline()
        if not line:
            log = self.home / "logs" / "supervisor.log"
            raise FailedPreconditionError(f"the stack's supervisor ended with code {supervisor.wait()}; see {log}")
        report = json.loads(line)
        if "error" in report:
            raise _START_ERRORS.get(report["kind"], FailedPreconditionError)(report["error"])
        self.notices += report["notices"]

    def _end_supervisor(self, supervisor: subprocess.Popen[bytes]) -> None:
        supervisor.terminate()
        try:
            supervisor.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        if supervisor.stdin is not None:
            supervisor.stdin.close()
