"""What operators watch of the queues."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from madpo.jobs.registry import QUEUES
from madpo.ports import JobQueue, QueueStatus

logger = logging.getLogger(__name__)
_ANSWER_TIMEOUT_S = 3.0
_STATUS = {
    "pending": ("madpo_queue_depth", "Jobs pending"),
    "waiting": ("madpo_queue_waiting", "Jobs that wait for other jobs"),
    "running": ("madpo_queue_running", "Jobs a worker is at"),
    "oldest_pending_s": ("madpo_queue_oldest_pending_seconds", "How long the job pending for longest has been pending"),
    "dead_letters": ("madpo_queue_dead_letters", "Jobs that crashed too often"),
}


class QueueCollector(Collector):
    """Asks how every queue stands each time metrics are read: no figure is older than its scrape.

    `collect` is for the threads of the metrics server; the queue is asked on its own event loop, which never waits.
    While the queue does not answer, `madpo_queue_up` is 0 and nothing else is said of it.

    Args:
        queue: Whom to ask.
        loop: Where the queue lives.
    """

    def __init__(self, queue: JobQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue, self._loop = queue, loop
        self._lock = threading.Lock()
        self._asked: Future[Mapping[str, QueueStatus]] | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        return _families(self._answer())

    def describe(self) -> Iterator[Metric]:
        """The same without figures; asks nobody."""
        return _families({})

    def _answer(self) -> Mapping[str, QueueStatus]:
        with self._lock:
            # One question at a time: scrapes must not pile up behind a server that is away.
            if self._asked is None or self._asked.done():
                self._asked = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
            asked = self._asked
        try:
            return asked.result(_ANSWER_TIMEOUT_S)
        except Exception as error:  # whatever it is, the other metrics must be read
            logger.warning("the queue does not say how it stands", extra={"error": str(error) or type(error).__name__})
            return {}

    async def _ask(self) -> Mapping[str, QueueStatus]:
        return {queue: await self._queue.status(queue) for queue in QUEUES}


def _families(statuses: Mapping[str, QueueStatus]) -> Iterator[Metric]:
    yield GaugeMetricFamily("madpo_queue_up", "Whether the queue answered this scrape", float(bool(statuses)))
    for field, (name, documentation) in _STATUS.items():
        gauge = GaugeMetricFamily(name, documentation, labels=["queue"])
        for queue, status in statuses.items():
            gauge.add_metric([queue], getattr(status, field))
        yield gauge
