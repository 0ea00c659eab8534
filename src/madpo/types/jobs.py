"""Jobs, where they stand, and what happens to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class JobKind(StrEnum):
    """What a job does; also the name of its spec."""

    SUPERVISED_TRAINING = "supervised_training"
    REWARD_TRAINING = "reward_training"
    POLICY_TRAINING = "policy_training"
    EVALUATION = "evaluation"
    CALIBRATION = "calibration"
    DATASET_CHECK = "dataset_check"
    SAMPLING = "sampling"
    SCORING = "scoring"


class JobState(StrEnum):
    """Life of a job: WAITING -> PENDING -> RUNNING -> one of the three terminal states."""

    WAITING = "WAITING"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over; terminal states never change."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


WAITING_FOR_STORE = "waiting for the object store"
"""The phase of a run that cannot go on without it."""


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where a running job stands: its steps, and how much of its present phase is done."""

    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    remaining_s: float | None = None
    """Until the end of the phase; None while unknown."""
    phase: str = ""
    """What the job is doing, in a few words."""
    phase_done: int = 0
    """Items of the phase that are done, of `phase_total`; 0 of 0 where they are not counted."""
    phase_total: int = 0
    phase_unit: str = ""
    """What is counted, such as `rows` or `bytes`."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job leaves: a model, a dataset, or neither; and figures."""

    model_id: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    dataset_id: str | None = None
    warnings: tuple[str, ...] = ()
    """What went wrong beside the job's purpose, a line each: a plot not made, a figure that is missing."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the queue knows it. `spec` is the JSON form of one of `madpo.jobs`' specs."""

    job_id: str
    kind: JobKind
    state: JobState
    spec: Mapping[str, Any]
    display_name: str = ""
    depends_on: tuple[str, ...] = ()
    attempt: int = 0
    create_time: float = 0.0
    start_time: float | None = None
    finish_time: float | None = None
    reason: str = ""
    result: JobResult | None = None
    cancel_requested: bool = False
    progress: JobProgress | None = None
    resumes: int = 0
    """How often it was taken up again after it had failed or was cancelled."""
    submitted_by: str = ""
    """Name of the caller that asked for it; "" of jobs from before callers had names."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Notes of the caller's own, which nothing here reads."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """The job moved to `state`."""

    state: JobState
    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the run's log."""

    line: str


@dataclass(frozen=True, slots=True)
class CheckpointPublished:
    """A checkpoint of this step became real."""

    step: int


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job; `cursor` resumes a watch after it."""

    cursor: str
    create_time: float
    event: StateChange | JobProgress | LogLine | CheckpointPublished
