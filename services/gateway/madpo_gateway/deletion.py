"""How things are removed that nothing needs: by somebody's word, or by retention.

A job is queued before what it refers to is looked up for the last time, and a pin is written before that. Here a thing
is taken out of sight before jobs are looked at for the last time: of the two, whichever gateways they are asked of, at
least one notices the other. What is needed is then put back as it was.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial

from madpo.errors import FailedPreconditionError, NotFoundError, UnavailableError, UnknownFormatError
from madpo.ports import JobQueue, ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import checkpoint_prefixes
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.references import checkpoint_bases
from madpo.storage.results import delete_job
from madpo.storage.withdrawals import Withdrawal, withdraw, withdrawn
from madpo_gateway.reconcile import Reconciler
from madpo_gateway.spool import run_blocking
from madpo_gateway.usage import Usage

logger = logging.getLogger(__name__)

_LOOKED_WITHIN_S = 30.0
_ABANDONED_S = 120.0
"""After so long a job that is neither deleted nor put back is one whose deletion was broken off."""

Guard = Callable[[Usage], Awaitable[None]]
"""Raises FailedPreconditionError where there is a further reason to keep a thing; asked whenever jobs are looked at."""


async def _no_further_reason(usage: Usage) -> None:
    pass


class Deletion:
    """Removes one thing at a time.

    Each method raises NotFoundError; and FailedPreconditionError for what is needed, where that cannot be known, and
    for what another removes or stores at the same moment.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        datasets: DatasetStore,
        models: ModelStore,
        queue: JobQueue,
        reconciler: Reconciler,
    ) -> None:
        self._store, self._datasets, self._models, self._queue = store, datasets, models, queue
        self._reconciler = reconciler
        self._turn = asyncio.Lock()
        self._bases: dict[str, set[str]] = {}
        """Of jobs whose checkpoints are adapters, by id: the spec of a job decides, so that they never change."""

    async def job(self, job_id: str, *, guard: Guard = _no_further_reason) -> None:
        """Take a job out of use, remove what it left, then forget it. See `BrokenOffDeletions`.

        One that cannot be read may be removed as well.
        """

        async def look(usage: Usage) -> None:
            usage.require_unneeded(job_id)
            await guard(usage)

        async with self._turn:
            await look(Usage(await self._reconciler.all_jobs(but_for=job_id)))
            await self._retire(job_id)
            retired = time.monotonic()
            try:
                await look(await Usage.of(self._queue))
                if time.monotonic() - retired > _LOOKED_WITHIN_S:
                    raise UnavailableError(f"looking who needs {job_id} took too long: delete it again")
            except BaseException:  # also where the caller went away
                await self._queue.reinstate(job_id)
                raise
            await run_blocking(delete_job, self._store, job_id)
            await self._queue.forget(job_id)
        logger.info("job deleted", extra={"job_id": job_id})

    async def model(
        self, model_id: str, *, stored_time: float | None = None, guard: Guard = _no_further_reason
    ) -> None:
        """Remove a model that no job needs, no adapter and no checkpoint; one whose manifest is damaged as well.

        Args:
            model_id: Which.
            stored_time: When it was stored last, as whoever wants it removed knows; None is now.
            guard: See `Guard`.
        """
        if stored_time is None:
            stored_time = await asyncio.to_thread(_last_stored, self._store, keys.model(model_id))
        is_damaged = stored_time is None

        async def look(usage: Usage) -> None:
            await self.require_unused_model(model_id, usage, is_damaged=is_damaged)
            await guard(usage)

        await self._remove(partial(self._models.withdraw, model_id, stored_time=stored_time), look)
        logger.info("model deleted", extra={"model_id": model_id})

    async def dataset(
        self, dataset_id: str, *, stored_time: float | None = None, guard: Guard = _no_further_reason
    ) -> None:
        """Remove a dataset that no job needs, and the token ids made of it. Arguments as of `model`."""

        async def look(usage: Usage) -> None:
            usage.require_unneeded(dataset_id)
            await guard(usage)

        if stored_time is None:
            stored_time = await asyncio.to_thread(_last_stored, self._store, keys.dataset(dataset_id))
        await self._remove(partial(self._datasets.withdraw, dataset_id, stored_time=stored_time), look)
        logger.info("dataset deleted", extra={"dataset_id": dataset_id})

    async def checkpoint(self, job_id: str, step: int, *, guard: Guard = _no_further_reason) -> None:
        """Remove a checkpoint, of whichever attempts, of a job that is over; one that no job may go on from or read."""

        async def look(usage: Usage) -> None:
            usage.require_unneeded_checkpoints(job_id)
            await guard(usage)

        for prefix in await asyncio.to_thread(checkpoint_prefixes, self._store, job_id, step):
            try:
                manifest = await asyncio.to_thread(bundle.read_manifest, self._store, prefix)
            except NotFoundError:  # it never became real
                await look(await Usage.of(self._queue))
                await run_blocking(bundle.delete, self._store, prefix)
            else:
                await self._remove(partial(withdraw, self._store, prefix, stored_time=manifest.stored_time), look)
        logger.info("checkpoint deleted", extra={"job_id": job_id, "step": step})

    async def require_unused_model(
        self, model_id: str, usage: Usage, *, gone: Collection[str] = (), is_damaged: bool = False
    ) -> None:
        """Make sure that nothing needs a model.

        Args:
            model_id: Which.
            usage: The jobs there are.
            gone: Models that would be removed by then.
            is_damaged: Whether nobody can use the model anyway: then models that cannot be read keep it no longer.

        Raises:
            FailedPreconditionError: Something does; names it.
        """
        usage.require_unneeded(model_id)
        adapters, unreadable = await asyncio.to_thread(self._models.adapters_of, model_id)
        if unreadable and not is_damaged:
            raise FailedPreconditionError(
                f"a model that cannot be read may be an adapter of {model_id}: {unreadable[0]}; upload that one again, "
                "or delete it first"
            )
        if left := [adapter for adapter in adapters if adapter not in gone]:
            raise FailedPreconditionError(f"the adapter {left[0]} belongs to {model_id}: delete that one first")
        # What another gateway takes out of sight may be an adapter, and may be put back.
        for prefix in await asyncio.to_thread(lambda: list(withdrawn(self._store))):
            if prefix != keys.model(model_id) and not prefix.startswith(f"{keys.DATASETS}/"):
                raise FailedPreconditionError(f"{prefix} is being removed at this moment: try again in a minute")
        for job in usage.jobs.values():
            training = job.spec.get("training")
            if not isinstance(training, Mapping) or training.get("lora") is None:
                continue
            if await self._has_checkpoints_of(job.job_id, model_id):
                raise FailedPreconditionError(
                    f"checkpoints of {job.job_id}, which is {job.state}, are adapters of {model_id}:"
                    " delete that job first"
                )
        self._bases = {job_id: bases for job_id, bases in self._bases.items() if job_id in usage.jobs}

    async def _has_checkpoints_of(self, job_id: str, model_id: str) -> bool:
        """Whether checkpoints of a job are adapters of a model."""
        if model_id not in self._bases.get(job_id, {model_id}):
            return False
        if bases := await asyncio.to_thread(checkpoint_bases, job_id, self._store):
            self._bases[job_id] = bases
        return model_id in bases

    async def _remove(self, withdraw: Callable[[], Withdrawal], look: Guard) -> None:
        async with self._turn:
            await look(Usage(await self._reconciler.all_jobs()))
            withdrawal = await run_blocking(withdraw)
            try:
                await look(await Usage.of(self._queue))
            except BaseException:  # also where the caller went away
                await run_blocking(withdrawal.put_back)
                raise
            await run_blocking(withdrawal.remove)

    async def _retire(self, job_id: str) -> None:
        try:
            with suppress(UnknownFormatError):  # it is retired all the same
                await self._queue.retire(job_id)
        except NotFoundError:
            # One whose request cannot be read never came back to a queue that had lost it.
            if await asyncio.to_thread(lambda: next(self._store.list(f"{keys.job(job_id)}/"), None)) is None:
                raise


class BrokenOffDeletions:
    """Jobs out of use whose remover died: the rest is removed of one whose request is gone, any other is put back.

    Args:
        store: Where their files are.
        queue: Which has them.
        abandoned_s: How long one must stay as it is until then, in seconds.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        queue: JobQueue,
        abandoned_s: float = _ABANDONED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._queue, self._abandoned_s, self._clock = store, queue, abandoned_s, clock
        self._seen: dict[tuple[str, str], float] = {}

    async def go_on(self) -> None:
        """Look at all; call it now and then."""
        now, before = self._clock(), self._seen
        self._seen = {mark: before.get(mark, now) for mark in (await self._queue.retired()).items()}
        for (job_id, _), since in self._seen.items():
            if now - since < self._abandoned_s:
                continue
            is_kept = await asyncio.to_thread(self._store.head, keys.job_spec(job_id)) is not None
            if is_kept:
                await self._queue.reinstate(job_id)
            else:
                await run_blocking(delete_job, self._store, job_id)
                await self._queue.forget(job_id)
            outcome = "put back" if is_kept else "removed"
            logger.warning(
                "a deletion that was broken off was gone on with", extra={"job_id": job_id, "outcome": outcome}
            )


def _last_stored(store: ObjectStore, prefix: str) -> float | None:
    """None where the manifest is damaged. Raises NotFoundError, which names the thing."""
    try:
        return bundle.find_stored_time(store, prefix, is_damaged=True)
    except NotFoundError as error:
        kind, _, thing_id = prefix.partition("s/")
        raise NotFoundError(f"no {kind} {thing_id}") from error
