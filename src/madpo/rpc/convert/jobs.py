"""Specs, jobs and their events: job_service.proto."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError, SerializeToJsonError
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from madpo import types
from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.jobs.base import ModelReference, Spec, validate
from madpo.jobs.registry import KINDS, parse_spec
from madpo.rpc.convert.times import duration, seconds, span_s, timestamp
from madpo.v1 import job_service_pb2 as jobs


def spec_from_proto(spec: jobs.JobSpec) -> tuple[types.JobKind, Spec]:
    """The typed spec; unset fields take their defaults.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    name = spec.WhichOneof("spec")
    if name is None:
        kinds = ", ".join(kind.value for kind in KINDS)
        raise InvalidArgumentError.in_field("spec", f"give one of {kinds}")
    kind = types.JobKind(name)
    try:
        value = MessageToDict(getattr(spec, name), preserving_proto_field_name=True)
    except SerializeToJsonError as error:
        found = _not_finite(getattr(spec, name), f"spec.{name}")
        raise InvalidArgumentError.of(list(found) or [FieldViolation(f"spec.{name}", str(error))]) from error
    return kind, parse_spec(kind, value)


def _not_finite(value: Any, path: str) -> Iterator[FieldViolation]:
    """The free values of a message that JSON has no numbers for."""
    if isinstance(value, Value):
        which = value.WhichOneof("kind")
        if which == "number_value" and not math.isfinite(value.number_value):
            yield FieldViolation(path, f"must be a finite number, got {value.number_value}")
        elif which in ("struct_value", "list_value"):
            yield from _not_finite(getattr(value, which), path)
    elif isinstance(value, Struct):
        for name, item in value.fields.items():
            yield from _not_finite(item, f"{path}.{name}")
    elif isinstance(value, ListValue):
        for index, item in enumerate(value.values):
            yield from _not_finite(item, f"{path}.{index}")
    else:
        for field, part in value.ListFields():
            if field.message_type is not None and not field.is_repeated:
                yield from _not_finite(part, f"{path}.{field.name}")


def spec_to_proto(kind: types.JobKind, spec: Mapping[str, Any]) -> jobs.JobSpec:
    """The wire form of a spec's JSON form.

    Raises:
        InvalidArgumentError: A field the contract does not know, or of the wrong type.
    """
    try:
        return ParseDict({kind.value: _without_none(spec)}, jobs.JobSpec())
    except ParseError as error:
        raise InvalidArgumentError(f"spec.{kind.value}: {error}") from error


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


def _with_old_names(kind: types.JobKind, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec for clients of the version before, who read its fields by their old names."""
    old: dict[str, Any] = {}
    for old_name, name in KINDS[kind].spec.renamed.items():
        value = spec.get(name)
        value = value.get("dataset_id") if isinstance(value, Mapping) else value
        if value is not None:
            old[old_name] = value
    return {**spec, **old}


def _without_old_names(kind: types.JobKind, spec: Mapping[str, Any]) -> dict[str, Any]:
    renamed = KINDS[kind].spec.renamed
    return {name: value for name, value in spec.items() if renamed.get(name) not in spec}


def state_to_proto(state: types.JobState) -> jobs.JobState:
    """By name."""
    return cast(jobs.JobState, jobs.JobState.Value(f"JOB_STATE_{state.value}"))


def state_from_proto(state: jobs.JobState) -> types.JobState:
    """By name."""
    return types.JobState(jobs.JobState.Name(state).removeprefix("JOB_STATE_"))


def progress_to_proto(progress: types.JobProgress) -> jobs.JobProgress:
    """All fields."""
    return jobs.JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        metrics=dict(progress.metrics),
        remaining=None if progress.remaining_s is None else duration(progress.remaining_s),
        phase=progress.phase,
        phase_done=progress.phase_done,
        phase_total=progress.phase_total,
        phase_unit=progress.phase_unit,
    )


def progress_from_proto(progress: jobs.JobProgress) -> types.JobProgress:
    """All fields."""
    return types.JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        metrics=dict(progress.metrics),
        remaining_s=span_s(progress.remaining) if progress.HasField("remaining") else None,
        phase=progress.phase,
        phase_done=progress.phase_done,
        phase_total=progress.phase_total,
        phase_unit=progress.phase_unit,
    )


def model_reference_to_proto(reference: ModelReference) -> jobs.ModelReference:
    """All fields."""
    return jobs.ModelReference(**reference.model_dump(exclude_none=True))


def model_reference_from_proto(reference: jobs.ModelReference, *, field: str) -> ModelReference:
    """Raises InvalidArgumentError where it names nothing, or what is no id."""
    return validate(ModelReference, MessageToDict(reference, preserving_proto_field_name=True), path=field)


def job_to_proto(job: types.Job) -> jobs.Job:
    """All fields."""
    message = jobs.Job(
        job_id=job.job_id,
        state=state_to_proto(job.state),
        spec=spec_to_proto(job.kind, _with_old_names(job.kind, job.spec)),
        display_name=job.display_name,
        depends_on=job.depends_on,
        attempt=job.attempt,
        create_time=timestamp(job.create_time),
        start_time=timestamp(job.start_time),
        finish_time=timestamp(job.finish_time),
        reason=job.reason,
        cancel_requested=job.cancel_requested,
        resumes=job.resumes,
        submitted_by=job.submitted_by,
        metadata=job.metadata,
    )
    if job.progress is not None:
        message.progress.CopyFrom(progress_to_proto(job.progress))
    if job.result is not None:
        message.result.model_id = job.result.model_id or ""
        message.result.dataset_id = job.result.dataset_id or ""
        message.result.warnings.extend(job.result.warnings)
        ParseDict(dict(job.result.summary), message.result.summary)
    return message


def job_from_proto(job: jobs.Job) -> types.Job:
    """All fields; the spec in its JSON form."""
    kind = types.JobKind(job.spec.WhichOneof("spec"))
    result = None
    if job.HasField("result"):
        summary = MessageToDict(job.result.summary)
        result = types.JobResult(
            job.result.model_id or None, summary, job.result.dataset_id or None, tuple(job.result.warnings)
        )
    return types.Job(
        job_id=job.job_id,
        kind=kind,
        state=state_from_proto(job.state),
        spec=_without_old_names(kind, MessageToDict(getattr(job.spec, kind.value), preserving_proto_field_name=True)),
        display_name=job.display_name,
        depends_on=tuple(job.depends_on),
        attempt=job.attempt,
        create_time=seconds(job.create_time),
        start_time=seconds(job.start_time) if job.HasField("start_time") else None,
        finish_time=seconds(job.finish_time) if job.HasField("finish_time") else None,
        reason=job.reason,
        result=result,
        cancel_requested=job.cancel_requested,
        progress=progress_from_proto(job.progress) if job.HasField("progress") else None,
        resumes=job.resumes,
        submitted_by=job.submitted_by,
        metadata=dict(job.metadata),
    )


def event_to_proto(event: types.JobEvent) -> jobs.JobEvent:
    """One of the four kinds."""
    message = jobs.JobEvent(cursor=event.cursor, create_time=timestamp(event.create_time))
    match event.event:
        case types.StateChange(state, attempt, reason):
            message.state_change.CopyFrom(
                jobs.JobStateChange(state=state_to_proto(state), attempt=attempt, reason=reason)
            )
        case types.JobProgress() as progress:
            message.progress.CopyFrom(progress_to_proto(progress))
        case types.LogLine(line):
            message.log.line = line
        case types.CheckpointPublished(step):
            message.checkpoint.step = step
    return message


def event_from_proto(event: jobs.JobEvent) -> types.JobEvent:
    """Inverse of `event_to_proto`."""
    payload: types.StateChange | types.JobProgress | types.LogLine | types.CheckpointPublished
    match event.WhichOneof("event"):
        case "state_change":
            change = event.state_change
            payload = types.StateChange(state_from_proto(change.state), change.attempt, change.reason)
        case "progress":
            payload = progress_from_proto(event.progress)
        case "checkpoint":
            payload = types.CheckpointPublished(event.checkpoint.step)
        case _:
            payload = types.LogLine(event.log.line)
    return types.JobEvent(event.cursor, seconds(event.create_time), payload)
