"""Jobs and events as JSON: how they lie in Redis and in a run's workspace."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from madpo.errors import UnknownFormatError
from madpo.jobs.registry import KINDS
from madpo.ports import JobRequest
from madpo.types import CheckpointPublished, Job, JobKind, JobProgress, JobResult, JobState, LogLine, StateChange

FORMAT = 1
"""Of a job's hash. It counts up when version n-1 would misunderstand it; a further field is passed over."""

RunEvent = JobProgress | LogLine | CheckpointPublished
"""What a run reports; state changes are the queue's own."""

_EVENTS: dict[str, TypeAdapter[Any]] = {
    "state": TypeAdapter(StateChange),
    "progress": TypeAdapter(JobProgress),
    "log": TypeAdapter(LogLine),
    "checkpoint": TypeAdapter(CheckpointPublished),
}
_EVENT_NAMES = {StateChange: "state", JobProgress: "progress", LogLine: "log", CheckpointPublished: "checkpoint"}
_JOB = TypeAdapter(Job)
_RESULT = TypeAdapter(JobResult)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def event_to_json(event: StateChange | RunEvent) -> tuple[str, str]:
    """The event's type name and its JSON; NaN metrics survive."""
    name = _EVENT_NAMES[type(event)]
    return name, json.dumps(_EVENTS[name].dump_python(event, mode="json"))


def event_from_json(name: str, data: str) -> StateChange | RunEvent:
    """Inverse of `event_to_json`. Raises KeyError or ValueError for what is not an event."""
    event: StateChange | RunEvent = _EVENTS[name].validate_python(json.loads(data))
    return event


def result_to_json(result: JobResult) -> str:
    """JSON of a result."""
    return json.dumps(_RESULT.dump_python(result, mode="json"))


def result_from_json(data: str) -> JobResult:
    """Inverse of `result_to_json`."""
    return _RESULT.validate_python(json.loads(data))


def job_to_json(job: Job) -> str:
    """JSON of a job."""
    return json.dumps(_JOB.dump_python(job, mode="json"))


def job_from_json(data: str) -> Job:
    """Inverse of `job_to_json`."""
    return _JOB.validate_python(json.loads(data))


def job_from_hash(fields: Mapping[str, str]) -> Job:
    """A job from its Redis hash, whose values are all text.

    Raises:
        UnknownFormatError: A newer version wrote it, or it was changed by hand; names the job.
    """
    try:
        if int(fields.get("format", FORMAT)) > FORMAT:
            raise ValueError(f"format {fields['format']}, of which this version knows {FORMAT}")
        return _job(fields)
    except (KeyError, TypeError, ValueError) as error:
        name = fields.get("job_id", "a job")
        raise UnknownFormatError(f"the queue's record of {name} cannot be read ({error}): upgrade madpo") from error


def _job(fields: Mapping[str, str]) -> Job:
    progress = fields.get("progress")
    return Job(
        job_id=fields["job_id"],
        kind=JobKind(fields["kind"]),
        state=JobState(fields["state"]),
        spec=json.loads(fields["spec"]),
        display_name=fields["display_name"],
        depends_on=tuple(json.loads(fields["depends_on"])),
        attempt=int(fields["attempt"]),
        create_time=float(fields["create_time"]),
        start_time=float(fields["start_time"]) if "start_time" in fields else None,
        finish_time=float(fields["finish_time"]) if "finish_time" in fields else None,
        reason=fields["reason"],
        result=result_from_json(fields["result"]) if "result" in fields else None,
        cancel_requested=fields.get("cancel_requested") == "1",
        progress=_EVENTS["progress"].validate_python(json.loads(progress)) if progress else None,
        resumes=int(fields.get("resumes", 0)),
        submitted_by=fields.get("submitted_by", ""),
        metadata=json.loads(fields.get("metadata", "{}")),
    )


def request_record(request: JobRequest, job_id: str) -> dict[str, Any]:
    """What the scripts that make a job are given of it."""
    depends_on = list(dict.fromkeys(request.depends_on))
    spec = canonical_json(request.spec)
    identity = canonical_json([request.kind, spec, sorted(depends_on)])
    return {
        "job_id": job_id,
        "request_id": request.request_id,
        "kind": request.kind.value,
        "queue": KINDS[request.kind].queue,
        "spec": spec,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "display_name": request.display_name,
        "depends_on": depends_on,
        "depends_on_json": json.dumps(depends_on),
        "max_attempts": request.max_attempts,
        "submitted_by": request.submitted_by,
        "metadata_json": json.dumps(dict(request.metadata)),
        "needs_json": json.dumps(sorted(set(KINDS[request.kind].needed_abilities(request.spec)))),
        "attempt": 0,
        "resumes": 0,
        "format": FORMAT,
    }
