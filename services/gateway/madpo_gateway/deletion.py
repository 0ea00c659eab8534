"""How things are removed that nothing needs: by somebody's word, or by retention."""

import asyncio
import logging

from madpo.errors import FailedPreconditionError
from madpo.ports import JobQueue, ObjectStore
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.results import delete_job
from madpo_gateway.usage import delete_unused, require_no_checkpoints, require_unused

logger = logging.getLogger(__name__)


class Deletion:
    """Removes one thing at a time. Each method raises NotFoundError, and FailedPreconditionError for what is needed."""

    def __init__(self, *, store: ObjectStore, datasets: DatasetStore, models: ModelStore, queue: JobQueue) -> None:
        self._store, self._datasets, self._models, self._queue = store, datasets, models, queue

    async def job(self, job_id: str) -> None:
        """Take a job out of use, remove what it left, then forget it: broken off, it can be asked for again."""
        await self._queue.get(job_id)
        await require_unused(job_id, self._queue)
        await self._queue.retire(job_id)
        await asyncio.to_thread(delete_job, self._store, job_id)
        await self._queue.forget(job_id)
        logger.info("job deleted", extra={"job_id": job_id})

    async def model(self, model_id: str) -> None:
        """Remove a model that no unfinished job needs, no adapter and no checkpoint."""
        await asyncio.to_thread(self._models.get, model_id)
        await delete_unused(model_id, self._models, lambda: self._require_unused_model(model_id))
        logger.info("model deleted", extra={"model_id": model_id})

    async def dataset(self, dataset_id: str) -> None:
        """Remove a dataset that no unfinished job needs, and the token ids made of it."""
        await asyncio.to_thread(self._datasets.get, dataset_id)
        await delete_unused(dataset_id, self._datasets, lambda: require_unused(dataset_id, self._queue))
        logger.info("dataset deleted", extra={"dataset_id": dataset_id})

    async def _require_unused_model(self, model_id: str) -> None:
        await require_unused(model_id, self._queue)
        adapter = await asyncio.to_thread(lambda: next(self._models.adapters_of(model_id), None))
        if adapter is not None:
            raise FailedPreconditionError(f"the adapter {adapter} belongs to {model_id}: delete that one first")
        await require_no_checkpoints(model_id, store=self._store, queue=self._queue)
