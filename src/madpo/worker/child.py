"""A child process with all that it starts."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from madpo.config import WorkerSettings
from madpo.worker import waiting

_BURIALS = 500
_BURIAL_PERIOD_S = 0.02


class Child:
    """A process group, killed as a whole.

    Args:
        pid: Its first process, a child of this one.
        end: Waits for the end of that; returns its exit code as `subprocess` gives it.
        control: Of a process that waits for its workspace: it is told there.
    """

    def __init__(self, pid: int, end: Callable[[], int], control: socket.socket | None = None) -> None:
        self._pid, self._end, self._control = pid, end, control
        self.exited = asyncio.create_task(asyncio.to_thread(self._wait))

    @classmethod
    def start(cls, command: Sequence[str], *, log_path: Path, settings: WorkerSettings, waits: bool = False) -> Self:
        """Start one.

        Args:
            command: What to run.
            log_path: Gets what it prints.
            settings: Threads of the run, and the workspace.
            waits: Whether it waits for its workspace; see `tell`.
        """
        environment = dict(os.environ)
        # Torch would leave what it compiles in the temporary directory; here later jobs find it again.
        # (A temporary directory may also be one that nothing can be loaded from: those of containers are.)
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.workspace / "compiled"))
        environment.setdefault("TRITON_CACHE_DIR", str(settings.workspace / "compiled" / "triton"))
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(settings.workspace / "compiled" / "extensions"))
        # Threads that libraries would start as they are imported: a process that has some leaves no copy of itself.
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        environment.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
        environment.setdefault("PYTHONUNBUFFERED", "1")  # what it printed last is known, whatever ends it
        if settings.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        control, theirs = socket.socketpair() if waits else (None, None)
        with log_path.open("ab") as log, theirs or contextlib.nullcontext():
            process = subprocess.Popen(
                command,
                stdin=theirs.fileno() if theirs else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(process.pid, process.wait, control)

    def _wait(self) -> None:
        # Not reaped yet (WNOWAIT): until then its id cannot be given to another process, so `kill` is safe.
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)

    def tell(self, workspace: Path, log_path: Path, *, leaves_copy: bool) -> None:
        """Have it begin in the workspace, its output in the log. Raises OSError when it does not listen any more.

        Args:
            workspace: Directory of the attempt.
            log_path: Gets what it prints from now on.
            leaves_copy: Whether it may leave a copy of itself, which this process has to adopt.
        """
        assert self._control is not None
        with log_path.open("ab") as log:
            waiting.tell(self._control, waiting.Order(workspace, leaves_copy), log)

    def copy(self) -> "Child | None":
        """The copy that it has left, a child of ours, or None. To be asked once, before `exit_code`."""
        left = waiting.left_copy(self._control) if self._control else None
        if left is None:
            return None
        pid, control = left
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else has adopted it: it ends when it is told nothing
            control.close()
            return None
        return Child(pid, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), control)

    def kill(self) -> None:
        """Kill whatever of the group is left; only before `exit_code`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)

    async def exit_code(self) -> int:
        """Wait for the end; negative is the number of the signal that killed it."""
        await self.exited
        if self._control is not None:
            self._control.close()
        code = self._end()
        with contextlib.suppress(ChildProcessError):  # there are no others of the group
            for _ in range(_BURIALS):
                if not self._bury_one():
                    await asyncio.sleep(_BURIAL_PERIOD_S)
        return code

    def _bury_one(self) -> bool:
        """Have the system forget one of the group that was killed; a parent that adopts has to."""
        return os.waitpid(-self._pid, os.WNOHANG)[0] > 0
