"""When a job is taken from a worker that fell silent.

A lease has run out once one process has seen it unchanged for its whole length, by a clock of its own that only goes
forward. The server's clock may jump; and while the server takes no writes, nobody can renew. So whoever begins to look,
or could not look for a while, waits a whole lease before it takes anything, and live workers renew theirs meanwhile.
"""

import logging
import time
from collections.abc import Callable, Sequence

from madpo.ports import JobQueue, Leases
from madpo.types import Job

logger = logging.getLogger(__name__)

_JUMP_S = 5.0


class Reaper:
    """Looks at leases again and again, and takes back the jobs of those that ran out.

    Args:
        queue: Whose leases.
        lease_s: Length of leases that do not say theirs, in seconds. `reap` is to be called at least twice in it.
        clock: In seconds, never set back.
    """

    def __init__(self, queue: JobQueue, *, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._lease_s, self._clock = queue, lease_s, clock
        self._silent_s: dict[tuple[str, str], float] = {}
        """By job and mark: how long it was seen unchanged."""
        self._looked: float | None = None
        self._server_time = 0.0

    async def reap(self) -> Sequence[Job]:
        """The jobs that were taken back at this look.

        Raises:
            UnavailableError, OverloadedError: The queue cannot be used; nothing that was seen before counts any more.
        """
        asked = self._clock()
        try:
            leases = await self._queue.leases()
        except BaseException:
            self._silent_s, self._looked = {}, None
            raise
        passed_s = 0.0 if self._looked is None else asked - self._looked
        self._notice_jump(leases, passed_s)
        self._looked, self._server_time = self._clock(), leases.server_time
        # Of a long time without a look little counts: this process was stopped, and the workers may have been as well.
        counted_s = min(passed_s, self._lease_s / 2)
        marks = {lease: (lease.job_id, lease.mark) for lease in leases.held}
        self._silent_s = {
            mark: self._silent_s[mark] + counted_s if mark in self._silent_s else 0.0 for mark in marks.values()
        }
        over = [lease for lease, mark in marks.items() if self._silent_s[mark] >= (lease.length_s or self._lease_s)]
        return await self._queue.reap(over) if over else []

    def _notice_jump(self, leases: Leases, passed_s: float) -> None:
        if self._looked is None:
            return
        jump_s = leases.server_time - self._server_time - passed_s
        if abs(jump_s) > _JUMP_S:
            logger.warning(
                "the queue's clock has jumped, and so have the times of jobs; leases do not depend on it",
                extra={"jump_s": round(jump_s, 1)},
            )
