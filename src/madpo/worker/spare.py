"""A process that is ready for the next attempt: it has imported what runs take, which takes seconds."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from madpo.config import WorkerSettings
from madpo.worker.child import Child
from madpo.worker.workspace import Workspace

_SETTLE_S = 5.0
"""A worker is idle for so long before it starts one: what starts beside it, or follows a job, comes first."""


class Spare:
    """The spare process of a worker: at most one, while it is idle, and for one attempt.

    It is a process like that of any attempt, started by the same command, environment and group, a while before; it
    reads settings and secrets once it has the job. It goes when the worker has been idle for `spare_s`, when memory is
    short (the kernel takes it first), and with the worker. Without one, an attempt starts a process of its own.

    Args:
        command: Of a process that waits for the path of its workspace on standard input; None keeps none.
        settings: How long to keep it, and the directory of its log.
    """

    def __init__(
        self, command: Sequence[str] | None, settings: WorkerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._command, self._settings, self._clock = command, settings, clock
        self._log = settings.workspace / f"spare-{os.getpid()}.log"
        self._child: Child | None = None
        self._idle_since = clock()
        self._had_one = False

    async def keep(self) -> None:
        """To be called from time to time by an idle worker: start it when its time has come, end it when it is over."""
        idle_s = self._clock() - self._idle_since
        if self._child is not None and (self._child.exited.done() or idle_s >= self._settings.spare_s):
            await self.discard()
        if self._command and not self._had_one and _SETTLE_S <= idle_s < self._settings.spare_s:
            self._had_one = True
            self._settings.workspace.mkdir(parents=True, exist_ok=True)
            self._remove_logs()
            self._child = Child(self._command, log_path=self._log, settings=self._settings, waits=True)

    async def take(self, workspace: Workspace) -> Child | None:
        """The process, now at work in the workspace, its output in the log there; None where there is none."""
        if self._child is not None:
            with contextlib.suppress(OSError):  # it has ended, or its log was removed
                self._log.replace(workspace.log_path)
                self._child.tell(f"{workspace.directory}\n")
                child, self._child = self._child, None
                return child
        await self.discard()
        return None

    def rest(self) -> None:
        """The worker is idle from now on."""
        self._idle_since, self._had_one = self._clock(), False

    async def discard(self) -> None:
        """End it, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await child.exit_code()
            self._log.unlink(missing_ok=True)

    def _remove_logs(self) -> None:
        """Its own of before, and those of workers that were killed: by their age, as no spare process lives longer."""
        for log in self._settings.workspace.glob("spare-*.log"):
            with contextlib.suppress(FileNotFoundError):
                if log == self._log or time.time() - log.stat().st_mtime > self._settings.spare_s:
                    log.unlink()
