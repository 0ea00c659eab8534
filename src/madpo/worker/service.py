"""The service around a job worker: what the trainer and the evaluator have in common."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.background import EssentialTask
from madpo.config import WorkerSettings
from madpo.ports import JobQueue
from madpo.queue.queue import open_queue
from madpo.storage.open import open_store
from madpo.worker.device import require_device
from madpo.worker.worker import JobWorker


class WorkerService:
    """Runs the jobs of one queue, one at a time, as child processes; a service for `madpo.rpc.server.run_service`.

    Args:
        settings: Where queue and store are, and how runs are watched.
        registry: For the worker's metrics.
        queue_name: The queue to serve.
        command: The child process of a job, given its workspace directory.
        spare: See `JobWorker`.
        abilities: See `JobWorker`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        registry: CollectorRegistry,
        *,
        queue_name: str,
        command: Callable[[Path], Sequence[str]],
        spare: Sequence[str] | None = None,
        abilities: Collection[str] | None = None,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._queue_name, self._command, self._spare, self._abilities = queue_name, command, spare, abilities
        self._stop = asyncio.Event()
        self._queue: JobQueue | None = None
        self._worker: EssentialTask | None = None

    def add_to_server(self, server: object) -> tuple[str, ...]:
        """Nothing to call: health is all such a service answers."""
        return ()

    async def start(self) -> None:
        """Connect to queue and store, then take jobs.

        Raises:
            UnavailableError: One of them does not answer.
            FailedPreconditionError: There is no GPU, and one is asked for.
        """
        settings = self._settings
        await require_device(settings)
        store = await asyncio.to_thread(open_store, settings)
        self._queue = open_queue(settings)
        await self._queue.ping()
        worker = JobWorker(
            self._queue,
            store,
            queue_name=self._queue_name,
            command=self._command,
            settings=settings,
            spare=self._spare,
            registry=self._registry,
            abilities=self._abilities,
        )
        self._worker = EssentialTask(worker.run(self._stop), name=f"the worker of queue {self._queue_name}")

    async def stop(self) -> None:
        """Let the running job reach a checkpoint and give it back.

        Raises:
            InternalError: The worker had ended by itself; any exception of the worker likewise.
        """
        try:
            if self._worker is not None:
                await self._worker.end(self._stop.set)
        finally:
            if self._queue is not None:
                await self._queue.close()
