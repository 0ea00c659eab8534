"""What jobs need, and so is not deleted: those that are not over, and those that this version cannot read."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Self

from madpo.errors import FailedPreconditionError
from madpo.ports import JobQueue, UnreadableJob
from madpo.types import Job, JobState

_ID = re.compile(r"(?:job|model|dataset)-[0-9a-f]{32}")


class Usage:
    """The jobs of a queue at one moment, and what they name.

    A job names whatever has its id in the job's spec, wherever that stands: what is not understood may well be needed.

    Args:
        jobs: All of them.
    """

    def __init__(self, jobs: Iterable[Job | UnreadableJob]) -> None:
        self.jobs: dict[str, Job] = {}
        """By id."""
        self.unreadable: dict[str, UnreadableJob] = {}
        """The others, by id. Nobody knows whether they are over."""
        for job in jobs:
            if isinstance(job, Job):
                self.jobs[job.job_id] = job
            else:
                self.unreadable[job.job_id] = job

    @classmethod
    async def of(cls, queue: JobQueue) -> Self:
        """The jobs of now."""
        return cls([job async for job in queue.scan()])

    def without(self, job_ids: Collection[str]) -> "Usage":
        """The same once these jobs are deleted."""
        left = [job for job in self.jobs.values() if job.job_id not in job_ids]
        return Usage([*left, *(job for job in self.unreadable.values() if job.job_id not in job_ids)])

    @property
    def are_over(self) -> bool:
        """Whether nobody works, or waits for a worker."""
        return not self.unreadable and all(job.state.is_terminal for job in self.jobs.values())

    def named(self) -> set[str]:
        """What any job names or has made."""
        return {thing_id for job in self._all() for thing_id in names(job)}

    def require_unneeded(self, thing_id: str) -> None:
        """Make sure that no job needs a model, a dataset or another job.

        Raises:
            FailedPreconditionError: One does; names it.
        """
        for job in self._all():
            if job.job_id == thing_id or thing_id not in self._needs(job):
                continue
            if isinstance(job, UnreadableJob):
                raise _kept_for(job, thing_id)
            if not job.state.is_terminal:
                raise FailedPreconditionError(
                    f"{thing_id} is used by {job.job_id}, which is {job.state}: cancel it or wait for its end"
                )

    def require_unneeded_checkpoints(self, job_id: str) -> None:
        """Make sure that a job is over, and that no other needs its checkpoints, nor would once it is resumed.

        Raises:
            FailedPreconditionError: It is not over, or one does; names it.
        """
        job = self.jobs.get(job_id)
        if job is None or not job.state.is_terminal:
            raise FailedPreconditionError(f"{job_id} is {'not known' if job is None else job.state}: wait for its end")
        self.require_unneeded(job_id)
        for other in self.jobs.values():
            if other.state is not JobState.SUCCEEDED and _names_checkpoint(other.spec, job_id):
                raise FailedPreconditionError(
                    f"a checkpoint of {job_id} is used by {other.job_id}, which is {other.state} and may be resumed:"
                    " delete that one first"
                )

    def require_unnamed(self, thing_id: str) -> None:
        """Raises FailedPreconditionError when any other job names the thing, or has made it; names the job."""
        for job in self._all():
            if job.job_id == thing_id or thing_id not in names(job):
                continue
            if isinstance(job, UnreadableJob):
                raise _kept_for(job, thing_id)
            raise FailedPreconditionError(f"{thing_id} belongs to {job.job_id}, which is kept")

    def _all(self) -> Iterator[Job | UnreadableJob]:
        yield from self.jobs.values()
        yield from self.unreadable.values()

    def _needs(self, job: Job | UnreadableJob) -> set[str]:
        """What a job names, and what the jobs have left that it names."""
        named = names(job)
        return named | {left for each in named & self.jobs.keys() for left in _left(self.jobs[each])}


def names(job: Job | UnreadableJob) -> set[str]:
    """Ids of what a job refers to, and of what it has made."""
    if isinstance(job, UnreadableJob):
        return set(_ID.findall(job.text))
    return {*_ID.findall(json.dumps(dict(job.spec))), *job.depends_on, *_left(job)}


def _names_checkpoint(value: Any, job_id: str) -> bool:
    """Whether a part of a spec names one of the job, in parts or as text."""
    if isinstance(value, Mapping):
        is_one = value.get("job_id") == job_id and value.get("step") is not None
        return is_one or any(_names_checkpoint(each, job_id) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(_names_checkpoint(each, job_id) for each in value)
    return isinstance(value, str) and value.startswith(f"{job_id}@")


def _left(job: Job) -> set[str]:
    return {each for each in (job.result.model_id, job.result.dataset_id) if each} if job.result is not None else set()


def _kept_for(job: UnreadableJob, thing_id: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{thing_id} may be needed by {job.job_id}: {job.reason}, or delete that job first")
