"""A child process with all that it starts."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from madpo.config import WorkerSettings


class Child:
    """A process group, killed as a whole.

    Args:
        command: What to run.
        log_path: Gets what it prints.
        settings: Threads of the run, and the workspace.
        waits: Whether it is told something on its standard input.
    """

    def __init__(
        self, command: Sequence[str], *, log_path: Path, settings: WorkerSettings, waits: bool = False
    ) -> None:
        environment = dict(os.environ)
        # Torch would leave what it compiles in the temporary directory; here later jobs find it again.
        # (A temporary directory may also be one that nothing can be loaded from: those of containers are.)
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.workspace / "compiled"))
        environment.setdefault("TRITON_CACHE_DIR", str(settings.workspace / "compiled" / "triton"))
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(settings.workspace / "compiled" / "extensions"))
        environment.setdefault("PYTHONUNBUFFERED", "1")  # what it printed last is known, whatever ends it
        if settings.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.exited = asyncio.create_task(asyncio.to_thread(self._wait))

    def _wait(self) -> None:
        # Not reaped yet (WNOWAIT): until then its id cannot be given to another process, so `kill` is safe.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def tell(self, text: str) -> None:
        """Write to its standard input, once. Raises BrokenPipeError when it does not listen any more."""
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(text.encode())

    def kill(self) -> None:
        """Kill whatever of the group is left; only before `exit_code`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def exit_code(self) -> int:
        """Wait for the end; negative is the number of the signal that killed it."""
        await self.exited
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.wait()
