"""What our own API gives of things, as JSON: the fields of `madpo.types`, under their names."""

from dataclasses import asdict
from typing import Any

from madpo.types import CheckpointPublished, Job, JobEvent, JobProgress, LogLine, StateChange


def job_json(job: Job) -> dict[str, Any]:
    """A job, with its kind, state and spec."""
    return asdict(job)


def event_json(event: JobEvent) -> dict[str, Any]:
    """An event, with its type beside its fields."""
    names = {StateChange: "state", JobProgress: "progress", LogLine: "log", CheckpointPublished: "checkpoint"}
    return {"type": names[type(event.event)], "create_time": event.create_time, **asdict(event.event)}
