"""How far a run is, and where it can be stopped."""

import logging
import time

from madpo.types import JobProgress
from madpo.worker.workspace import Run

logger = logging.getLogger(__name__)


class StopRequestedError(Exception):
    """The worker asked the run to end; raised between batches."""


class Phase:
    """Tells how far one phase of the run is, and where the run can be stopped."""

    def __init__(self, run: Run, name: str, total: int = 0) -> None:
        self._run, self._name, self._total = run, name, total
        self._done, self._start = 0, time.monotonic()
        logger.info(name, extra={"total": total})
        self.advance(0)

    def advance(self, count: int) -> None:
        """Report `count` more items. Raises StopRequestedError when the worker asked the run to end."""
        if self._run.stop_requested is not None:
            raise StopRequestedError
        self._done += count
        per_item_s = (time.monotonic() - self._start) / self._done if self._done else None
        remaining_s = None if per_item_s is None else per_item_s * (self._total - self._done)
        self._run.progress(
            JobProgress(step=self._done, total_steps=self._total, remaining_s=remaining_s, phase=self._name)
        )
