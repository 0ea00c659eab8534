"""A session that keeps what the SDK asks of a gateway."""

from typing import Any

from madpo.types import Job, JobKind, JobState

JOB_ID = "job-" + "0" * 32


class RecordingGateway:
    """Takes jobs and sends nothing."""

    def __init__(self) -> None:
        self.requests: list[tuple[JobKind, dict[str, Any], dict[str, Any]]] = []

    def create_job(self, kind: JobKind, spec: dict[str, Any], **rest: Any) -> Job:
        self.requests.append((kind, spec, rest))
        return Job(JOB_ID, kind, JobState.PENDING, spec)


class RecordingSession:
    def __init__(self) -> None:
        self.gateway = RecordingGateway()

    def run(self, call: Job) -> Job:
        return call
