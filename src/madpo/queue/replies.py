"""What the queue's scripts answer: a job, or why there is none."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from madpo.errors import FailedPreconditionError, NotFoundError, OverloadedError, UnknownFormatError
from madpo.ports import UnreadableJob
from madpo.queue.records import job_from_hash
from madpo.types import Job

logger = logging.getLogger(__name__)


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A hash as Redis lists it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def job_of(reply: Sequence[Any]) -> Job:
    """The job of a reply that is one."""
    assert reply[0] == "job", reply
    return job_from_hash(pairs(reply[1]))


def all_jobs(hashes: Iterable[Mapping[str, str]]) -> Iterator[Job | UnreadableJob]:
    """The jobs of their hashes, without those deleted meanwhile."""
    for fields in filter(None, hashes):
        try:
            yield job_from_hash(fields)
        except UnknownFormatError as error:
            yield UnreadableJob(fields.get("job_id", ""), json.dumps(fields), str(error))


def readable_jobs(hashes: Iterable[Mapping[str, str]]) -> list[Job]:
    """As `all_jobs`; what cannot be read is reported and left out."""
    jobs = []
    for job in all_jobs(hashes):
        if isinstance(job, Job):
            jobs.append(job)
        else:
            logger.error("job left out", extra={"job_id": job.job_id, "error": job.reason})
    return jobs


def require_room(reply: Sequence[Any], caller: str, limit: int) -> None:
    """Raises OverloadedError for a caller that has as many jobs as it may have."""
    match reply:
        case ["no_room", count]:
            raise OverloadedError(
                f"the token {caller!r} may have {limit} unfinished jobs and has {count}:"
                " wait for one to end, or cancel it"
            )


def accepted(reply: Sequence[Any], job_id: str) -> Job:
    """The job, once it has become what was asked.

    Raises:
        NotFoundError: There is no such job.
        FailedPreconditionError: Its state, or that of a job around it, forbids it; says what to do.
    """
    match reply:
        case ["unknown"]:
            raise NotFoundError(f"there is no job {job_id}")
        case ["not_over", state]:
            raise FailedPreconditionError(f"{job_id} is {state}: cancel it, and wait for its end")
        case ["in_use", user, state]:
            raise FailedPreconditionError(f"{job_id} is used by {user}, which is {state}: cancel that one first")
        case ["no_failure", "SUCCEEDED"]:
            raise FailedPreconditionError(f"{job_id} has succeeded, so nothing of it is left to do: create a new job")
        case ["no_failure", state]:
            raise FailedPreconditionError(f"{job_id} is {state}: only a failed or cancelled job can be resumed")
        case ["unknown_dependency", dependency]:
            raise FailedPreconditionError(f"{job_id} needs {dependency}, which was deleted: create a new job")
        case ["ended_dependency", dependency, state]:
            raise FailedPreconditionError(f"{job_id} needs {dependency}, which is {state}: resume that one first")
    return job_of(reply)
