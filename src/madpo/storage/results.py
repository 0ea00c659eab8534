"""What a job was asked and how it ended, kept in the object store so that the queue can be rebuilt from it."""

import logging
from dataclasses import dataclass

from madpo.errors import AlreadyExistsError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.types import Job, JobKind, JobResult, JobState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended."""

    state: JobState
    result: JobResult | None = None
    reason: str = ""


def write_spec(store: ObjectStore, job: Job) -> None:
    """Keep a job's request; the same job again changes nothing.

    Raises:
        AlreadyExistsError: The job id was used for another request.
    """
    body = {
        "job_id": job.job_id,
        "kind": job.kind.value,
        "spec": dict(job.spec),
        "display_name": job.display_name,
        "depends_on": list(job.depends_on),
        "create_time": job.create_time,
    }
    if not store.put_if_absent(keys.job_spec(job.job_id), documents.encode(body)):
        raise AlreadyExistsError(f"{job.job_id} exists with another spec")


def read_spec(store: ObjectStore, job_id: str) -> Job:
    """The job as it was requested, in state PENDING. Raises NotFoundError."""
    key = keys.job_spec(job_id)
    body = documents.decode(store.get(key), key=key)
    return Job(
        job_id=body["job_id"],
        kind=JobKind(body["kind"]),
        state=JobState.PENDING,
        spec=body["spec"],
        display_name=body["display_name"],
        depends_on=tuple(body["depends_on"]),
        create_time=body["create_time"],
    )


def write_result(store: ObjectStore, job_id: str, state: JobState, result: JobResult | None, reason: str) -> None:
    """Keep how a job ended. The first outcome stays; another one later is logged and dropped."""
    assert state.is_terminal
    value = None if result is None else {"model_id": result.model_id, "summary": dict(result.summary)}
    if value is not None and result is not None and result.dataset_id is not None:
        value["dataset_id"] = result.dataset_id
    body = {"state": state.value, "result": value, "reason": reason}
    if not store.put_if_absent(keys.job_result(job_id), documents.encode(body)):
        logger.warning("job has another outcome already", extra={"job_id": job_id, "state": state.value})


def read_result(store: ObjectStore, job_id: str) -> JobOutcome:
    """How a job ended. Raises NotFoundError while it has not."""
    key = keys.job_result(job_id)
    body = documents.decode(store.get(key), key=key)
    result = JobResult(**body["result"]) if body["result"] else None
    return JobOutcome(JobState(body["state"]), result, body["reason"])
