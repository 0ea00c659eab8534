"""What a spec refers to, looked up: every reference must lead to something of the kind that its field asks for."""

import asyncio
from dataclasses import dataclass, field

from madpo.errors import FieldViolation, NotFoundError
from madpo.jobs.base import (
    DatasetReference,
    ModelReference,
    NeedsDataset,
    NeedsJobs,
    NeedsModel,
    Reference,
    Spec,
    references,
)
from madpo.jobs.registry import KINDS
from madpo.ports import JobQueue, ObjectStore
from madpo.storage.checkpoints import list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.types import Dataset, Job
from madpo_gateway.reconcile import find_job


@dataclass(frozen=True, slots=True)
class Shelves:
    """Where things are looked up."""

    store: ObjectStore
    datasets: DatasetStore
    models: ModelStore
    queue: JobQueue

    async def job(self, job_id: str) -> Job:
        """See `find_job`."""
        return await find_job(job_id, store=self.store, queue=self.queue)


@dataclass(slots=True)
class Findings:
    """What a spec's references lead to, and what is wrong with it. `path` is where its fields are in the request."""

    path: str
    datasets: dict[str, Dataset] = field(default_factory=dict)
    """By the field that refers to them; one that a job is still to leave is not known."""
    jobs: dict[str, Job | None] = field(default_factory=dict)
    """By id; None where there is no such job."""
    violations: list[FieldViolation] = field(default_factory=list)

    def add(self, field_name: str, description: str) -> None:
        """Something is wrong with a field of the spec."""
        self.violations.append(FieldViolation(f"{self.path}.{field_name}".lstrip("."), description))


class ReferenceCheck:
    """Follows the references of one spec."""

    def __init__(self, shelves: Shelves, findings: Findings) -> None:
        self._shelves, self._findings = shelves, findings

    async def follow(self, spec: Spec) -> None:
        """Look up every reference, in the order of fields; what is wrong goes into the findings."""
        for reference in references(spec):
            match reference:
                case Reference(path, ModelReference() as target, NeedsModel() as need):
                    await self._model(path, target, need)
                case Reference(path, DatasetReference() as target, NeedsDataset() as need):
                    await self._dataset(path, target, need)
                case Reference(path, str(job_id), NeedsJobs(kind)):
                    job = await self.job(path, job_id)
                    if job is not None and job.kind is not kind:
                        self._add(path, f"{job_id} is a {job.kind} job; give {kind} jobs")
                case _:
                    raise AssertionError(f"{reference.path} refers to another thing than it says it needs")

    async def job(self, field_name: str, job_id: str) -> Job | None:
        """A job; an unknown one is named once, however often the spec does."""
        jobs = self._findings.jobs
        if job_id not in jobs:
            try:
                jobs[job_id] = await self._shelves.job(job_id)
            except NotFoundError:
                jobs[job_id] = None
                self._add(field_name, f"there is no job {job_id}")
        return jobs[job_id]

    async def _dataset(self, path: str, target: DatasetReference, need: NeedsDataset) -> None:
        name, dataset_id = f"{path}.dataset_id", target.dataset_id
        if target.job_id is not None:
            name, dataset_id = f"{path}.job_id", await self._left_dataset(path, target.job_id, need)
        if dataset_id is None:
            return
        try:
            dataset = await asyncio.to_thread(self._shelves.datasets.get, dataset_id)
        except NotFoundError:
            self._add(name, f"there is no dataset {dataset_id}; upload it first")
            return
        if dataset.kind not in need.kinds:
            self._add(name, f"{dataset_id} is a {dataset.kind} dataset; give {_one_of(need.kinds, 'dataset')}")
            return
        self._findings.datasets[path] = dataset

    async def _left_dataset(self, path: str, job_id: str, need: NeedsDataset) -> str | None:
        """The dataset that a job has left; None where it is still to, or never will."""
        job = await self.job(f"{path}.job_id", job_id)
        if job is None:
            return None
        if not KINDS[job.kind].leaves_dataset & need.kinds:
            wanted = _one_of(need.kinds, "dataset")
            self._add(f"{path}.job_id", f"{job_id} is a {job.kind} job; give one that leaves {wanted}")
            return None
        return job.result.dataset_id if job.result is not None else None

    async def _model(self, path: str, target: ModelReference, need: NeedsModel) -> None:
        if need.is_served and target.step is not None:
            self._add(f"{path}.step", "the reward service serves stored models only; leave step out")
        elif target.job_id is not None:
            await self._left_model(path, target.job_id, target.step, need)
        elif target.model_id is not None:
            await self._stored_model(path, target.model_id, need)

    async def _stored_model(self, path: str, model_id: str, need: NeedsModel) -> None:
        try:
            model = await asyncio.to_thread(self._shelves.models.get, model_id)
        except NotFoundError:
            self._add(f"{path}.model_id", f"there is no model {model_id}; upload it first")
            return
        if model.kind not in need.kinds:
            self._add(f"{path}.model_id", f"{model_id} is a {model.kind} model; give {_one_of(need.kinds, 'model')}")

    async def _left_model(self, path: str, job_id: str, step: int | None, need: NeedsModel) -> None:
        job = await self.job(f"{path}.job_id", job_id)
        if job is None:
            return
        if KINDS[job.kind].leaves_model not in need.kinds:
            wanted = _one_of(need.kinds, "model")
            self._add(f"{path}.job_id", f"{job_id} is a {job.kind} job; give one that trains {wanted}")
        elif step is None and job.result is not None and job.result.model_id is not None:
            await self._final_model(path, job_id, job.result.model_id)
        elif step is not None:
            checkpoints = await asyncio.to_thread(list_checkpoints, self._shelves.store, job_id)
            steps = sorted({checkpoint.step for checkpoint in checkpoints})
            if step not in steps:
                kept = ", ".join(map(str, steps)) or "none"
                self._add(f"{path}.step", f"{job_id} has no checkpoint of step {step}; it has {kept}")

    async def _final_model(self, path: str, job_id: str, model_id: str) -> None:
        try:
            await asyncio.to_thread(self._shelves.models.get, model_id)
        except NotFoundError:
            self._add(f"{path}.job_id", f"{job_id} left {model_id}, which was deleted: give one of its checkpoints")

    def _add(self, field_name: str, description: str) -> None:
        self._findings.add(field_name, description)


def _one_of(kinds: frozenset[str], what: str) -> str:
    """`a causal_lm or reward model`, for what a field takes."""
    return f"a {' or '.join(sorted(kinds))} {what}"
