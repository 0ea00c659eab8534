"""What is kept, and for how long; the rest is removed, once nothing needs it.

Jobs go first, then what no kept job speaks of. Everything is removed the way `madpo job delete` and the like remove it:
what an unfinished job or an adapter needs stays, also where it begins to need it in that moment. So does what is
pinned, named by a new job or stored again meanwhile: all of that is looked at anew for each thing that goes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from typing import TypeVar

from madpo.errors import CorruptObjectError, FailedPreconditionError, NotFoundError, UnknownFormatError
from madpo.jobs.registry import QUEUES
from madpo.ports import JobQueue, ObjectInfo, ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.listing import list_unfinished
from madpo.storage.models import ModelStore
from madpo.storage.pins import pinned
from madpo.storage.withdrawals import withdraw_unfinished, withdrawn
from madpo.types import AuditRecord, Caller, Checkpoint, Dataset, Job, Model, Removal, Role
from madpo_gateway.access import OPERATOR
from madpo_gateway.deletion import Deletion
from madpo_gateway.reconcile import Reconciler
from madpo_gateway.requests import MAX_PAGE_SIZE
from madpo_gateway.retention_policy import DAY_S, RetentionPolicy
from madpo_gateway.spool import run_blocking
from madpo_gateway.usage import Usage, names

logger = logging.getLogger(__name__)

T = TypeVar("T")

BY_RULE = Caller(OPERATOR, Role.ADMIN)
"""Who removes what the rules of the gateway's settings say."""
_METHOD = "RetentionService/ApplyRetention"


class Retention:
    """Applies a policy to one object store and its queue.

    Args:
        policy: What is kept.
        store: Where things are.
        datasets: In the store.
        models: In the store.
        queue: Of the jobs.
        reconciler: Of both.
        deletion: Removes things.
        note: Keeps a record of each thing that was removed.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        policy: RetentionPolicy,
        *,
        store: ObjectStore,
        datasets: DatasetStore,
        models: ModelStore,
        queue: JobQueue,
        reconciler: Reconciler,
        deletion: Deletion,
        note: Callable[[AuditRecord], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy, self._store, self._queue, self._clock = policy, store, queue, clock
        self._datasets, self._models, self._deletion, self._note = datasets, models, deletion, note
        self._reconciler = reconciler
        self._applying = asyncio.Lock()
        self._now, self._usage = 0.0, Usage([])
        self._gone: set[str] = set()
        """Ids of what was removed in this run, or would be."""

    async def apply(self, *, dry_run: bool, caller: Caller = BY_RULE) -> AsyncGenerator[Removal]:
        """What is removed, or would be, as it happens; what is found to be needed meanwhile is left out.

        Args:
            dry_run: Whether to remove nothing.
            caller: Who has it applied, for the audit log.

        Raises:
            FailedPreconditionError: It cannot be known what is needed, see `Reconciler`.
        """
        async with self._applying:
            async for removal in self._apply(dry_run=dry_run):
                self._gone.add(removal.thing_id)
                if not dry_run:
                    logger.info("removed by retention", extra={"kind": removal.kind, "thing": removal.thing_id})
                    await self._note(_record(removal, caller))
                yield removal

    async def _apply(self, *, dry_run: bool) -> AsyncIterator[Removal]:
        await self._reconciler.run()
        self._now, self._gone = self._clock(), set()
        usage = self._usage = Usage(await self._reconciler.all_jobs())
        pins = await asyncio.to_thread(pinned, self._store)
        going, kept = self._sorted(usage, pins)
        for job in going:
            described = await asyncio.to_thread(self._describe_job, job)
            check = partial(self._require_job_free, job)
            if await self._is_removed(partial(self._deletion.job, job.job_id, guard=check), check, dry_run):
                yield described
            else:
                kept.append(job)
        spoken_of = usage.without(self._gone).named() | pins
        async for removal in self._apply_to_checkpoints(kept, dry_run):
            yield removal
        async for removal in self._apply_to_models(spoken_of, dry_run):
            yield removal
        async for removal in self._apply_to_datasets(spoken_of, dry_run):
            yield removal
        async for removal in self._apply_to_derived(dry_run):
            yield removal
        async for removal in self._apply_to_unfinished(kept, dry_run):
            yield removal
        async for removal in self._apply_to_audit(dry_run):
            yield removal

    def _sorted(self, usage: Usage, pins: Collection[str]) -> tuple[list[Job], list[Job]]:
        """Jobs to go, and to keep; newest first, so that of a chain of jobs the later ones are seen first."""
        going, kept, ended = [], [], 0
        needed = {*pins, *(each for job in usage.unreadable.values() for each in names(job))}
        for job in sorted(usage.jobs.values(), key=lambda job: job.create_time, reverse=True):
            age_s = self._now - (job.finish_time or self._now)
            is_needed = not job.state.is_terminal or job.job_id in needed
            if not is_needed and self._policy.jobs.is_over(age_s, newer=ended):
                going.append(job)
            else:
                kept.append(job)
                needed |= names(job)
            ended += job.state.is_terminal
        return going, kept

    async def _apply_to_checkpoints(self, kept: Sequence[Job], dry_run: bool) -> AsyncIterator[Removal]:
        rule = self._policy.checkpoints
        for job in kept:
            age_s = self._now - (job.finish_time or self._now)
            if not job.state.is_terminal or not rule.is_over(age_s, newer=rule.keep_last):
                continue
            steps: dict[int, int] = {}
            for checkpoint in await asyncio.to_thread(self._whole_checkpoints, job.job_id):
                steps[checkpoint.step] = steps.get(checkpoint.step, 0) + checkpoint.size_bytes
            # The newest always stays: a job that failed or was cancelled may be resumed from it.
            for step, size_bytes in list(steps.items())[max(1, rule.keep_last) :]:
                check = partial(self._require_checkpoints_free, job)
                delete = partial(self._deletion.checkpoint, job.job_id, step, guard=check)
                if await self._is_removed(delete, check, dry_run):
                    yield Removal("checkpoint", f"{job.job_id}@{step}", size_bytes, age_s, job.display_name)

    async def _apply_to_models(self, spoken_of: set[str], dry_run: bool) -> AsyncIterator[Removal]:
        models: list[Model] = await asyncio.to_thread(lambda: list(_each(self._models.list)))
        bases = {model.base_model_id for model in models}
        # Adapters first: their bases may go with them, in this run or the next.
        for newer, model in sorted(enumerate(models), key=lambda each: each[1].model_id in bases):
            if model.model_id in spoken_of or (stored_time := await _last_stored(self._models, model.model_id)) is None:
                continue
            age_s = self._now - stored_time
            if not self._policy.models.is_over(age_s, newer=newer):
                continue
            check = partial(self._require_free, model.model_id)
            delete = partial(self._deletion.model, model.model_id, stored_time=stored_time, guard=check)
            if await self._is_removed(delete, partial(self._require_model_free, model.model_id), dry_run):
                yield Removal("model", model.model_id, model.size_bytes, age_s, model.display_name)

    async def _apply_to_datasets(self, spoken_of: set[str], dry_run: bool) -> AsyncIterator[Removal]:
        datasets: list[Dataset] = await asyncio.to_thread(lambda: list(_each(self._datasets.list)))
        for newer, dataset in enumerate(datasets):
            dataset_id = dataset.dataset_id
            if dataset_id in spoken_of or (stored_time := await _last_stored(self._datasets, dataset_id)) is None:
                continue
            age_s = self._now - stored_time
            if not self._policy.datasets.is_over(age_s, newer=newer):
                continue
            check = partial(self._require_free, dataset_id)
            delete = partial(self._deletion.dataset, dataset_id, stored_time=stored_time, guard=check)
            if await self._is_removed(delete, check, dry_run):
                yield Removal("dataset", dataset_id, dataset.size_bytes, age_s, dataset.display_name)

    async def _apply_to_derived(self, dry_run: bool) -> AsyncIterator[Removal]:
        """Bundle by bundle, so that a manifest goes before what it lists. Not while jobs run that may read them."""
        if not (await Usage.of(self._queue)).are_over:
            return
        for root, depth in ((keys.TOKENS, 3), (keys.REFERENCE_LOGPS, 2)):
            bundles = await asyncio.to_thread(self._bundles, root, depth)
            for newer, (prefix, objects) in enumerate(bundles):
                age_s = self._now - max(info.modified_time for info in objects)
                if self._policy.derived.is_over(age_s, newer=newer) and await self._is_idle():
                    if not dry_run:
                        await asyncio.to_thread(self._delete_all, objects)
                    yield Removal(root, prefix, sum(info.size_bytes for info in objects), age_s)

    async def _apply_to_unfinished(self, kept: Sequence[Job], dry_run: bool) -> AsyncIterator[Removal]:
        """What nobody can find, and whoever stores the same at this moment stores anew.

        Of checkpoints and artifacts those of jobs that are over: another attempt writes under a number of its own. Who
        goes on with token ids holds them first. Log-probs are written without a look at what is removed, so theirs go
        while nobody works.
        """
        rule = self._policy.unfinished
        over = {job.job_id for job in kept if job.state.is_terminal}
        for root in (keys.MODELS, keys.DATASETS, keys.JOBS, keys.TOKENS, keys.REFERENCE_LOGPS):
            found = await asyncio.to_thread(list_unfinished, self._store, root)
            by_age = sorted((max(info.modified_time for info in infos), prefix) for prefix, infos in found.items())
            for newer, (written_time, prefix) in enumerate(reversed(by_age)):
                age_s = self._now - written_time
                if not rule.is_over(age_s, newer=newer) or (root == keys.JOBS and prefix.split("/")[1] not in over):
                    continue
                if root == keys.REFERENCE_LOGPS and not await self._is_idle():
                    continue
                if await self._is_given_up(prefix, written_time, dry_run):
                    yield Removal("unfinished", prefix, sum(info.size_bytes for info in found[prefix]), age_s)

    async def _is_given_up(self, prefix: str, written_time: float, dry_run: bool) -> bool:
        """Whether its files are gone now, or would be."""
        if dry_run:
            return prefix not in await asyncio.to_thread(lambda: list(withdrawn(self._store)))
        try:
            withdrawal = await run_blocking(withdraw_unfinished, self._store, prefix, before=written_time)
            await run_blocking(withdrawal.remove)
        except (FailedPreconditionError, NotFoundError) as error:
            logger.info("kept", extra={"why": str(error)})
            return False
        return True

    async def _apply_to_audit(self, dry_run: bool) -> AsyncIterator[Removal]:
        days: dict[str, list[ObjectInfo]] = {}
        if self._policy.audit.days is None:
            return
        for info in await asyncio.to_thread(lambda: list(self._store.list(f"{keys.AUDIT}/"))):
            days.setdefault(info.key.split("/")[1], []).append(info)
        for newer, day in enumerate(sorted(days, reverse=True)):
            age_s = self._now - datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC).timestamp() - DAY_S
            if self._policy.audit.is_over(age_s, newer=newer):
                if not dry_run:
                    await asyncio.to_thread(self._delete_all, days[day])
                yield Removal("audit", day, sum(info.size_bytes for info in days[day]), age_s)

    async def _is_removed(
        self, delete: Callable[[], Awaitable[None]], check: Callable[[Usage], Awaitable[None]], dry_run: bool
    ) -> bool:
        """Whether it is gone now, or would be; not where it turns out to be needed, or to be gone already."""
        try:
            if dry_run:
                await check(self._usage.without(self._gone))
            else:
                await delete()
        except (FailedPreconditionError, NotFoundError, CorruptObjectError) as error:
            logger.info("kept", extra={"why": str(error)})
            return False
        return True

    async def _require_free(self, thing_id: str, usage: Usage) -> None:
        if thing_id in await asyncio.to_thread(pinned, self._store):
            raise FailedPreconditionError(f"{thing_id} is pinned")
        usage.require_unneeded(thing_id)
        usage.require_unnamed(thing_id)

    async def _require_job_free(self, job: Job, usage: Usage) -> None:
        found = usage.jobs.get(job.job_id)
        if found is None or (found.state, found.finish_time) != (job.state, job.finish_time):
            raise FailedPreconditionError(f"{job.job_id} was resumed, or is gone")
        await self._require_free(job.job_id, usage)

    async def _require_model_free(self, model_id: str, usage: Usage) -> None:
        await self._require_free(model_id, usage)
        await self._deletion.require_unused_model(model_id, usage, gone=self._gone)

    async def _require_checkpoints_free(self, job: Job, usage: Usage) -> None:
        if job.job_id in await asyncio.to_thread(pinned, self._store):
            raise FailedPreconditionError(f"{job.job_id} is pinned")
        usage.require_unneeded_checkpoints(job.job_id)

    async def _is_idle(self) -> bool:
        """Whether no worker has a job or could get one."""
        statuses = [await self._queue.status(queue) for queue in QUEUES]
        return not any(status.pending + status.waiting + status.running for status in statuses)

    def _whole_checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Newest first; one that has lost files is no reason to remove an older one, nor is one of a newer version."""
        whole = []
        for each in list_checkpoints(self._store, job_id):
            with suppress(UnknownFormatError):
                if bundle.find_whole(self._store, keys.checkpoint(job_id, step=each.step, attempt=each.attempt)):
                    whole.append(each)
        return whole

    def _describe_job(self, job: Job) -> Removal:
        size_bytes = sum(info.size_bytes for info in self._store.list(f"{keys.job(job.job_id)}/"))
        age_s = self._now - (job.finish_time or self._now)
        return Removal("job", job.job_id, size_bytes, age_s, job.display_name)

    def _bundles(self, root: str, depth: int) -> list[tuple[str, list[ObjectInfo]]]:
        """What stands below a root, by the first so many parts of its key, newest first."""
        found: dict[str, list[ObjectInfo]] = {}
        for info in self._store.list(f"{root}/"):
            found.setdefault("/".join(info.key.split("/")[:depth]), []).append(info)
        return sorted(found.items(), key=lambda each: max(info.modified_time for info in each[1]), reverse=True)

    def _delete_all(self, objects: list[ObjectInfo]) -> None:
        for info in sorted(objects, key=lambda info: not info.key.endswith(f"/{keys.MANIFEST}")):
            self._store.delete(info.key)


def _record(removal: Removal, caller: Caller) -> AuditRecord:
    kind = f"{removal.kind}_id" if removal.kind in ("job", "model", "dataset") else removal.kind
    subjects = [f"{kind}={removal.thing_id}"]
    if removal.display_name:
        subjects.append(f"display_name={removal.display_name}")
    return AuditRecord(time.time(), caller.name, caller.role, _METHOD, "OK", tuple(subjects), request_id="", peer="")


async def _last_stored(things: DatasetStore | ModelStore, thing_id: str) -> float | None:
    """None where it is gone."""
    try:
        return await asyncio.to_thread(things.last_stored, thing_id)
    except NotFoundError:
        return None


def _each(list_page: Callable[..., tuple[list[T], str]]) -> Iterator[T]:
    token = ""
    while True:
        things, token = list_page(page_size=MAX_PAGE_SIZE, page_token=token)
        yield from things
        if not token:
            return
