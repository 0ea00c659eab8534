"""Why a run ended without a last word, as its supervisor can tell."""

import re
import signal
from dataclasses import replace
from pathlib import Path

from madpo.worker.failure import Failure

_CGROUP = Path("/sys/fs/cgroup")
_COUNTS = (_CGROUP / "memory.events", _CGROUP / "memory" / "memory.oom_control", Path("/proc/vmstat"))
"""Where the kernel counts what it killed for want of memory: in a container of cgroup v2, of v1, on the whole host."""
_LIMITS = (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes")
_UNLIMITED_BYTES = 1 << 60


def memory_kills() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it does not say."""
    for path in _COUNTS:
        if found := re.search(r"^oom_kill (\d+)$", _read(path), re.MULTILINE):
            return int(found[1])
    return 0


def describe(failure: Failure | None, exit_code: int, *, memory_ran_out: bool) -> Failure:
    """What to say of a run that crashed.

    Args:
        failure: What its processes left.
        exit_code: Of the first process; negative is the number of the signal that killed it.
        memory_ran_out: Whether the kernel killed something meanwhile for want of memory.
    """
    if failure is None:
        failure = Failure(f"the run exited with code {exit_code} before it had finished")
        if exit_code < 0:
            failure = killed("the run", -exit_code)
    if failure.signal != signal.SIGKILL:
        return failure
    if not memory_ran_out:
        return replace(failure, message=f"{failure.message} (out of host memory?)")
    return replace(
        failure,
        message=f"{failure.message}: out of host memory{_limit()}",
        advice="give the worker more, or take less at a time: training.micro_batch_tokens, generation_batch_size",
    )


def killed(who: str, number: int) -> Failure:
    """A process that a signal killed."""
    return Failure(f"{who} was killed by {signal.Signals(number).name}", signal=number)


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
