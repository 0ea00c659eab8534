"""What is kept, and for how long; the rest is removed, once nothing needs it.

Jobs go first, then what no kept job speaks of. Everything is removed the way `madpo job delete` and the like remove it:
what an unfinished job or an adapter needs stays, also where it begins to need it in that moment.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import TypeVar

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.jobs.base import references
from madpo.jobs.registry import parse_spec
from madpo.ports import JobQueue, ObjectInfo, ObjectStore
from madpo.storage import keys
from madpo.storage.checkpoints import list_checkpoints, remove_checkpoint
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.pins import pinned
from madpo.types import Dataset, Job, Model, Removal
from madpo_gateway.deletion import Deletion
from madpo_gateway.requests import MAX_PAGE_SIZE
from madpo_gateway.retention_policy import DAY_S, RetentionPolicy

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ID = re.compile(r"(?:job|model|dataset)-[0-9a-f]{32}")


class Retention:
    """Applies a policy to one object store and its queue."""

    def __init__(
        self,
        policy: RetentionPolicy,
        *,
        store: ObjectStore,
        datasets: DatasetStore,
        models: ModelStore,
        queue: JobQueue,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy, self._store, self._queue, self._clock = policy, store, queue, clock
        self._datasets, self._models = datasets, models
        self._applying = asyncio.Lock()
        self._now, self._pinned = 0.0, frozenset[str]()
        self._deletion = Deletion(store=store, datasets=datasets, models=models, queue=queue)

    async def apply(self, *, dry_run: bool) -> AsyncIterator[Removal]:
        """What is removed, or would be, as it happens; what is found to be needed meanwhile is left out."""
        async with self._applying:
            async for removal in self._apply(dry_run=dry_run):
                yield removal

    async def _apply(self, *, dry_run: bool) -> AsyncIterator[Removal]:
        self._now, self._pinned = self._clock(), await asyncio.to_thread(pinned, self._store)
        jobs = [job async for job in self._all_jobs()]
        going, kept = self._sorted(jobs)
        for job in going:
            described = await asyncio.to_thread(self._describe_job, job)
            if await self._is_removed(described, self._deletion.job, dry_run=dry_run):
                yield described
            else:
                kept.append(job)
        spoken_of = {thing_id for job in kept for thing_id in _speaks_of(job)} | self._pinned
        async for removal in self._apply_to_checkpoints(kept, dry_run):
            yield removal
        async for removal in self._apply_to_models(spoken_of, dry_run):
            yield removal
        async for removal in self._apply_to_datasets(spoken_of, dry_run):
            yield removal
        if all(job.state.is_terminal for job in jobs):
            async for removal in self._apply_to_derived(dry_run):
                yield removal
        async for removal in self._apply_to_audit(dry_run):
            yield removal

    def _sorted(self, jobs: list[Job]) -> tuple[list[Job], list[Job]]:
        """Jobs to go, and to keep; newest first, so that of a chain of jobs the later ones are seen first."""
        going, kept, needed, ended = [], [], set(self._pinned), 0
        for job in sorted(jobs, key=lambda job: job.create_time, reverse=True):
            age_s = self._now - (job.finish_time or self._now)
            is_needed = not job.state.is_terminal or job.job_id in needed
            if not is_needed and self._policy.jobs.is_over(age_s, newer=ended):
                going.append(job)
            else:
                kept.append(job)
                needed |= _speaks_of(job)
            ended += job.state.is_terminal
        return going, kept

    async def _apply_to_checkpoints(self, kept: Sequence[Job], dry_run: bool) -> AsyncIterator[Removal]:
        rule = self._policy.checkpoints
        in_use = {thing_id for job in kept if not job.state.is_terminal for thing_id in {job.job_id, *_speaks_of(job)}}
        for job in kept:
            age_s = self._now - (job.finish_time or self._now)
            if job.job_id in in_use | self._pinned or not rule.is_over(age_s, newer=rule.keep_last):
                continue
            steps: dict[int, int] = {}
            for checkpoint in await asyncio.to_thread(list_checkpoints, self._store, job.job_id):
                steps[checkpoint.step] = steps.get(checkpoint.step, 0) + checkpoint.size_bytes
            # The newest always stays: a job that failed or was cancelled may be resumed from it.
            for step, size_bytes in list(steps.items())[max(1, rule.keep_last) :]:
                if not dry_run:
                    await asyncio.to_thread(remove_checkpoint, self._store, job.job_id, step)
                yield Removal("checkpoint", f"{job.job_id}@{step}", size_bytes, age_s, job.display_name)

    async def _apply_to_models(self, spoken_of: set[str], dry_run: bool) -> AsyncIterator[Removal]:
        models: list[Model] = await asyncio.to_thread(lambda: list(_each(self._models.list)))
        bases = {model.base_model_id for model in models}
        # Adapters first: their bases may go with them, in this run or the next.
        for newer, model in sorted(enumerate(models), key=lambda each: each[1].model_id in bases):
            age_s = self._now - model.create_time
            if model.model_id in spoken_of or not self._policy.models.is_over(age_s, newer=newer):
                continue
            described = Removal("model", model.model_id, model.size_bytes, age_s, model.display_name)
            if await self._is_removed(described, self._deletion.model, dry_run=dry_run):
                yield described

    async def _apply_to_datasets(self, spoken_of: set[str], dry_run: bool) -> AsyncIterator[Removal]:
        datasets: list[Dataset] = await asyncio.to_thread(lambda: list(_each(self._datasets.list)))
        for newer, dataset in enumerate(datasets):
            age_s = self._now - dataset.create_time
            if dataset.dataset_id in spoken_of or not self._policy.datasets.is_over(age_s, newer=newer):
                continue
            described = Removal("dataset", dataset.dataset_id, dataset.size_bytes, age_s, dataset.display_name)
            if await self._is_removed(described, self._deletion.dataset, dry_run=dry_run):
                yield described

    async def _apply_to_derived(self, dry_run: bool) -> AsyncIterator[Removal]:
        """Bundle by bundle, so that a manifest goes before what it lists. Not while jobs run that may read them."""
        for root, depth in ((keys.TOKENS, 3), (keys.REFERENCE_LOGPS, 2)):
            bundles = await asyncio.to_thread(self._bundles, root, depth)
            for newer, (prefix, objects) in enumerate(bundles):
                age_s = self._now - max(info.modified_time for info in objects)
                if self._policy.derived.is_over(age_s, newer=newer):
                    if not dry_run:
                        await asyncio.to_thread(self._delete_all, objects)
                    yield Removal(root, prefix, sum(info.size_bytes for info in objects), age_s)

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

    async def _is_removed(self, removal: Removal, delete: Callable[[str], Awaitable[None]], *, dry_run: bool) -> bool:
        """Whether it is gone now, or would be; not where it turns out to be needed, or to be gone already."""
        if dry_run:
            return True
        try:
            await delete(removal.thing_id)
        except (FailedPreconditionError, NotFoundError) as error:
            logger.info("kept", extra={"thing": removal.thing_id, "why": str(error)})
            return False
        return True

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

    async def _all_jobs(self) -> AsyncIterator[Job]:
        token = ""
        while True:
            jobs, token = await self._queue.list(page_size=MAX_PAGE_SIZE, page_token=token)
            for job in jobs:
                yield job
            if not token:
                return


def _speaks_of(job: Job) -> set[str]:
    """Ids of what a job refers to and of what it made."""
    left = {job.result.model_id, job.result.dataset_id} if job.result is not None else set()
    try:
        targets = [reference.target for reference in references(parse_spec(job.kind, job.spec))]
    except InvalidArgumentError:  # of another version
        named = set(_ID.findall(json.dumps(dict(job.spec))))
    else:
        texts = [target if isinstance(target, str) else target.model_dump_json() for target in targets]
        named = set(_ID.findall(" ".join(texts)))
    return {each for each in left | named | set(job.depends_on) if each}


def _each(list_page: Callable[..., tuple[list[T], str]]) -> Iterator[T]:
    token = ""
    while True:
        things, token = list_page(page_size=MAX_PAGE_SIZE, page_token=token)
        yield from things
        if not token:
            return
