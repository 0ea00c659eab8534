"""How far a run is, and where it can be stopped: every phase that may take long goes through here."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from madpo.storage.files import Transfer
from madpo.types import JobProgress
from madpo.worker.workspace import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAY_EVERY_S = 1.0
_ITEMS_AT_ONCE = 64


class Interrupted(Exception):  # noqa: N818 - control flow, not an error
    """The worker asked the run to end; raised between the pieces of a phase."""


class Phase:
    """One phase of a run: says from time to time how much of it is done, and ends where the run is asked to stop.

    Long work calls `advance` after each piece, a second or less of work: what it finished is counted and may be kept,
    and a wish to stop is met within that time.

    Args:
        run: Whose phase it is.
        name: For people, such as "reference log-probs".
        total: Items in all; 0 where nobody knows, or where the phase is a short one.
        unit: What is counted, such as "rows"; "bytes" are shown as sizes.
        done: Items that an earlier attempt had done: part of the count, not of the speed.
        step: Optimizer steps the job has done; without it the items are counted as the job's steps.
        total_steps: With `step`: of how many; 0 before that is known.
        reports: Whether it says anything; of the ranks of a training one does, all look for the wish to stop.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        total: int = 0,
        *,
        unit: str = "",
        done: int = 0,
        step: int | None = None,
        total_steps: int = 0,
        reports: bool = True,
    ) -> None:
        self._run, self._name, self._total, self._unit = run, name, total, unit
        self._before = self._done = done
        self._step, self._total_steps, self._reports = step, total_steps, reports
        self._start = self._said = time.monotonic()
        self._lock = threading.Lock()
        if reports:
            logger.info(name, extra={"total": total, "done": done} if total else {})
            self._report(self._start)

    def advance(self, count: int = 1) -> None:
        """Count items that were done since the last call; any thread may call.

        Raises:
            Interrupted: The worker asked the run to end.
        """
        with self._lock:
            self._done += count
            now = time.monotonic()
            is_due = now - self._said >= _SAY_EVERY_S or 0 < self._total == self._done
            if self._reports and count and is_due:
                self._report(now)
        if self._run.stop_requested is not None:
            raise Interrupted

    def _report(self, now: float) -> None:
        self._said = now
        new, left = self._done - self._before, max(0, self._total - self._done)
        progress = JobProgress(
            step=self._done if self._step is None else self._step,
            total_steps=self._total if self._step is None else self._total_steps,
            remaining_s=(now - self._start) / new * left if new and self._total else None,
            phase=self._name,
            phase_done=self._done,
            phase_total=self._total,
            phase_unit=self._unit,
        )
        self._run.progress(progress)


def counted(items: Iterable[T], phase: Phase) -> Iterator[T]:
    """The items of a phase, of which many pass in a second. Raises Interrupted as `Phase.advance` does."""
    count = 0
    for count, item in enumerate(items, start=1):
        if count % _ITEMS_AT_ONCE == 0:
            phase.advance(_ITEMS_AT_ONCE)
        yield item
    phase.advance(count % _ITEMS_AT_ONCE)


def transfers(begin: "BeginPhase") -> Transfer:
    """Makes a phase of every transfer of files."""
    return lambda name, size_bytes: begin(name, size_bytes, unit="bytes").advance


class BeginPhase(Protocol):
    """Begins a phase of the run."""

    def __call__(self, name: str, total: int = 0, *, unit: str = "", done: int = 0) -> Phase:
        """See `Phase`."""
        ...
