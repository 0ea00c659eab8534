"""A process that is ready for the next attempt: it has imported what runs take, which takes seconds."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

from madpo.config import WorkerSettings
from madpo.worker import waiting
from madpo.worker.child import Child
from madpo.worker.workspace import Workspace


class Spare:
    """The spare process of a worker: at most one, and for one attempt.

    It is a process like that of any attempt, started by the same command, environment and group, a while before; it
    reads settings and secrets once it has the job. Before it begins it leaves a copy of itself for the next attempt,
    where that can be; after a crash that is not used. It goes when the worker has been idle for `spare_s`, when memory
    is short (the kernel takes it first), and with the worker.

    Args:
        command: Of a process that waits for its workspace (`madpo.worker.waiting`); None keeps none.
        settings: How long to keep it, and the directory of its log.
    """

    def __init__(
        self, command: Sequence[str] | None, settings: WorkerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._command, self._settings, self._clock = command, settings, clock
        self._log = settings.workspace / f"spare-{os.getpid()}.log"
        self._child: Child | None = None
        self._idle_since = clock()
        self._had_one = self._adopts = False

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """While a worker works: processes may leave copies, which this process adopts."""
        if not self._is_wanted:
            yield
            return
        with waiting.adopting() as self._adopts:
            yield

    @property
    def _is_wanted(self) -> bool:
        return self._command is not None and self._settings.spare_s > 0

    async def keep(self) -> None:
        """To be called from time to time by an idle worker: start it when its time has come, end it when it is over."""
        idle_s = self._clock() - self._idle_since
        if self._child is not None and (self._child.exited.done() or idle_s >= self._settings.spare_s):
            await self.discard()
        if self._is_wanted and not self._had_one and self._settings.spare_after_s <= idle_s < self._settings.spare_s:
            self._start()

    def _start(self) -> None:
        assert self._command is not None
        self._had_one = True
        self._settings.workspace.mkdir(parents=True, exist_ok=True)
        self._remove_logs()
        self._child = Child.start(self._command, log_path=self._log, settings=self._settings, waits=True)

    async def take(self, workspace: Workspace) -> Child | None:
        """The process, or one that is only starting, now at work in the workspace, its output in the log there.

        None where none is wanted: then an attempt starts a process of its own.
        """
        while self._is_wanted:
            was_ready = self._child is not None
            if not was_ready:
                self._start()
            with contextlib.suppress(OSError):  # it has ended
                return self._send_off(workspace)
            await self.discard()
            if not was_ready:
                break
        return None

    def _send_off(self, workspace: Workspace) -> Child:
        assert self._child is not None
        with contextlib.suppress(FileNotFoundError):  # a copy has printed nothing
            self._log.replace(workspace.log_path)
        self._child.tell(workspace.directory, workspace.log_path, leaves_copy=self._adopts)
        child, self._child = self._child, None
        return child

    def inherit(self, child: Child) -> None:
        """Keep the copy that the process of an attempt has left, if there is one; the attempt is over."""
        self._child = self._child or child.copy()

    def rest(self) -> None:
        """The worker is idle from now on."""
        self._idle_since, self._had_one = self._clock(), self._child is not None

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
