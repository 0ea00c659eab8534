"""What a job was asked and how it ended, kept in the object store so that the queue can be rebuilt from it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from madpo.errors import AlreadyExistsError, CorruptObjectError, NotFoundError
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


@dataclass(frozen=True, slots=True)
class JobStanding:
    """How a job stands as far as the store knows: what must outlive the queue.

    Attributes:
        outcome: How it ended; None while it has not.
        resumes: How often it was resumed before that.
        cancel_requested: Whether somebody asked for its end since.
    """

    outcome: JobOutcome | None
    resumes: int
    cancel_requested: bool


def write_spec(store: ObjectStore, job: Job, *, is_accepted: bool = True) -> None:
    """Keep a job's request; the same job again changes nothing.

    Args:
        store: Where.
        job: Whose.
        is_accepted: Whether the queue has the job. What was kept before that is only a request: see `accept_spec`.

    Raises:
        AlreadyExistsError: The job id was used for another request.
    """
    body = _spec(job) if is_accepted else {**_spec(job), "is_accepted": False}
    if not store.put_if_absent(keys.job_spec(job.job_id), documents.seal(body)):
        raise AlreadyExistsError(f"{job.job_id} exists with another spec")


def accept_spec(store: ObjectStore, job: Job) -> None:
    """Keep that the queue has a job: from now on it outlives the queue. One that was accepted before stays as it is."""
    key, data = keys.job_spec(job.job_id), documents.seal(_spec(job))
    while True:  # a lost race means that another one was written: finite
        try:
            found, etag = store.get_with_etag(key)
        except NotFoundError:
            if store.put_if_absent(key, data):
                return
            continue
        if _is_accepted(documents.unseal(found, key=key)) or store.put_if_match(key, data, etag) is not None:
            return


def _spec(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "kind": job.kind.value,
        "spec": dict(job.spec),
        "display_name": job.display_name,
        "depends_on": list(job.depends_on),
        "create_time": job.create_time,
        "submitted_by": job.submitted_by,
        **({"metadata": dict(job.metadata)} if job.metadata else {}),
    }


def _is_accepted(body: Mapping[str, Any]) -> bool:
    return bool(body.get("is_accepted", True))


def read_spec(store: ObjectStore, job_id: str, *, only_accepted: bool = False) -> Job:
    """The job as it was requested, in state PENDING.

    Args:
        store: Where.
        job_id: Whose.
        only_accepted: Whether a request that no queue is known to have taken counts as none.

    Raises:
        NotFoundError: It is not kept.
        CorruptObjectError: What is kept was changed.
        UnknownFormatError: A newer version wrote it.
    """
    key = keys.job_spec(job_id)
    body = documents.unseal(store.get(key), key=key)
    if only_accepted and not _is_accepted(body):
        raise NotFoundError(f"{job_id} was asked for, but never queued")
    with documents.reading(key):
        return _job(body)


def _job(body: Mapping[str, Any]) -> Job:
    return Job(
        job_id=body["job_id"],
        kind=JobKind(body["kind"]),
        state=JobState.PENDING,
        spec=body["spec"],
        display_name=body["display_name"],
        depends_on=tuple(body["depends_on"]),
        create_time=body["create_time"],
        submitted_by=body.get("submitted_by", ""),
        metadata=body.get("metadata", {}),
    )


def write_result(
    store: ObjectStore, job_id: str, state: JobState, result: JobResult | None, reason: str, *, resumes: int = 0
) -> None:
    """Keep how a job ended, having been resumed so often.

    The first outcome stays, until the job is resumed; what comes late, from before that, is logged and dropped.
    """
    assert state.is_terminal
    if not _replace(store, job_id, _outcome(state, result, reason, resumes), over=_is_open(resumes)):
        logger.warning("job has another outcome already", extra={"job_id": job_id, "state": state.value})


def keep_cancellation(store: ObjectStore, job: Job) -> None:
    """Keep that the end of a running job was asked for; one that has ended or was resumed since stays as it is."""
    body = {**_outcome(None, None, "", job.resumes), "cancel_requested": True}
    _replace(store, job.job_id, body, over=_is_open(job.resumes))


def reopen_result(store: ObjectStore, job: Job) -> None:
    """Say of a job that has ended that it is resumed, before it is; again, it changes nothing.

    Until `accept_resume` it stands where it stood.
    """
    resumes = job.resumes + 1
    before = _outcome(job.state, job.result, job.reason, job.resumes)
    body = {**_outcome(None, None, "", resumes), "is_accepted": False, "before": before}
    _replace(store, job.job_id, body, over=lambda found: found["resumes"] < resumes)


def accept_resume(store: ObjectStore, job: Job) -> None:
    """Keep that the queue has resumed a job, given as it is since; what happened to it meanwhile stays."""
    body = _outcome(None, None, "", job.resumes)
    _replace(store, job.job_id, body, over=lambda found: _is_open(job.resumes)(found) and not _is_accepted(found))


def close_result(store: ObjectStore, job: Job) -> None:
    """Take back `reopen_result`: the job could not be resumed."""
    reopened = {"state": None, "resumes": job.resumes + 1}
    body = _outcome(job.state, job.result, job.reason, job.resumes)
    _replace(store, job.job_id, body, over=lambda found: {name: found[name] for name in reopened} == reopened)


def _is_open(resumes: int) -> Callable[[Mapping[str, Any]], bool]:
    """Whether an outcome of a job that was resumed so often may stand in the place of what is found."""
    return lambda found: found["resumes"] < resumes or (found["resumes"] == resumes and found["state"] is None)


def _outcome(state: JobState | None, result: JobResult | None, reason: str, resumes: int) -> dict[str, Any]:
    value: dict[str, Any] | None = None
    if result is not None:
        value = {"model_id": result.model_id, "summary": dict(result.summary)}
        if result.dataset_id is not None:
            value["dataset_id"] = result.dataset_id
        if result.warnings:
            value["warnings"] = list(result.warnings)
    return {"state": state and state.value, "result": value, "reason": reason, "resumes": resumes}


def read_result(store: ObjectStore, job_id: str) -> JobOutcome:
    """How a job ended. Raises NotFoundError while it has not."""
    found, _ = _read_outcome(store, job_id)
    if found["state"] is None:
        raise NotFoundError(f"{job_id} has not ended")
    return _job_outcome(found, job_id)


def read_standing(store: ObjectStore, job_id: str) -> JobStanding:
    """How a job stands. Raises CorruptObjectError, and UnknownFormatError for what a newer version wrote."""
    found, _ = _read_outcome(store, job_id)
    if not _is_accepted(found):
        found = found["before"]
    outcome = None if found["state"] is None else _job_outcome(found, job_id)
    return JobStanding(outcome, int(found["resumes"]), bool(found.get("cancel_requested", False)))


def _job_outcome(found: Mapping[str, Any], job_id: str) -> JobOutcome:
    with documents.reading(keys.job_result(job_id)):
        result = None
        if value := found["result"]:
            value = {**value, "warnings": tuple(value.get("warnings", ()))}
            result = JobResult(**documents.known_fields(JobResult, value))
        return JobOutcome(JobState(found["state"]), result, found["reason"])


def delete_job(store: ObjectStore, job_id: str) -> None:
    """Remove everything that is kept of a job; its request first, so that it is not taken for one the queue lost."""
    store.delete(keys.job_spec(job_id))
    for info in list(store.list(f"{keys.job(job_id)}/")):
        store.delete(info.key)


def _replace(
    store: ObjectStore, job_id: str, body: Mapping[str, Any], *, over: Callable[[Mapping[str, Any]], bool]
) -> bool:
    """Write the outcome where there is none, or one that may be written over; whether it is what is stored now.

    A damaged one may be: whoever ends, cancels or resumes a job knows how it stands, and nothing else does any more.
    """
    key = keys.job_result(job_id)
    data = documents.seal(body)
    while True:  # a lost race means that another one was written: finite
        try:
            stored, etag = store.get_with_etag(key)
        except NotFoundError:
            if store.put_if_absent(key, data):
                return True
            continue
        try:
            found = _outcome_of(stored, key)
        except CorruptObjectError as error:
            logger.error("a damaged outcome is written over", extra={"job_id": job_id, "error": str(error)})
        else:
            if not over(found):
                return documents.seal(found) == data
        if store.put_if_match(key, data, etag) is not None:
            return True


def _read_outcome(store: ObjectStore, job_id: str) -> tuple[Mapping[str, Any], str | None]:
    """What is stored, and its etag; what stands for nothing, and None, where nothing is."""
    key = keys.job_result(job_id)
    try:
        data, etag = store.get_with_etag(key)
    except NotFoundError:
        return {"state": None, "resumes": 0}, None
    return _outcome_of(data, key), etag


def _outcome_of(data: bytes, key: str) -> Mapping[str, Any]:
    return {"resumes": 0, **documents.unseal(data, key=key)}
