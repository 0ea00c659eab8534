"""Why a run ended without a last word, as its supervisor can tell."""

import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from madpo.worker.failure import Failure

_CGROUP = Path("/sys/fs/cgroup")
_COUNTS = (_CGROUP / "memory.events", _CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Where the kernel counts what it killed for want of memory: in a container of cgroup v2, of v1, on the whole host."""
_LIMITS = (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes")
_UNLIMITED_BYTES = 1 << 60
_RECENT_S = 60.0
_SENT = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM)
"""Signals that a process gets from others, not by what it does."""


class MemoryKills:
    """Notices when the kernel kills something for want of memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = _memory_kills()
        self._rose: float | None = None

    def look(self) -> None:
        """To be called from time to time."""
        if (count := _memory_kills()) != self._count:
            self._count, self._rose = count, self._clock()

    @property
    def is_recent(self) -> bool | None:
        """Whether it did within the last minute: a while may pass until that is missed. None: it does not say."""
        self.look()
        if self._count is None:
            return None
        return self._rose is not None and self._clock() - self._rose <= _RECENT_S


def _memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory so far; None where it does not say."""
    for path in _COUNTS:
        if found := re.search(r"^oom_kill (\d+)$", _read(path), re.MULTILINE):
            return int(found[1])
    return None


def describe(failure: Failure | None, exit_code: int, *, memory_ran_out: bool | None) -> Failure:
    """What to say of a run that crashed.

    Args:
        failure: What its processes left.
        exit_code: Of the first process; negative is the number of the signal that killed it.
        memory_ran_out: Whether the kernel just killed something for want of memory; None where nobody knows.
    """
    if failure is None:
        failure = Failure(f"the run exited with code {exit_code} before it had finished")
        if exit_code < 0:
            failure = killed("the run", -exit_code)
    if failure.signal != signal.SIGKILL:
        return failure
    if memory_ran_out is None:
        return replace(failure, message=f"{failure.message} (out of memory?)", from_outside=False)
    if not memory_ran_out:
        return replace(failure, message=f"{failure.message} from outside: memory had not run out")
    return replace(
        failure,
        message=f"{failure.message}: out of host memory{_limit()}",
        advice="give the worker more, or take less at a time: training.micro_batch_tokens, generation_batch_size",
        from_outside=False,
    )


def killed(who: str, number: int) -> Failure:
    """A process that a signal killed."""
    sent = number in _SENT
    return Failure(f"{who} was killed by {signal.Signals(number).name}", signal=number, from_outside=sent)


def _limit() -> str:
    for path in _LIMITS:
        text = _read(path).strip()
        if text.isdigit() and int(text) < _UNLIMITED_BYTES:
            return f", of which the container has {int(text) / (1 << 30):.1f} GiB"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
