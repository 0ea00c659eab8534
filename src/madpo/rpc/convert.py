"""Protobuf messages to domain values and back; nothing else touches both."""

import json
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.timestamp_pb2 import Timestamp

from madpo import types
from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.jobs import SPEC_TYPES, JobSpec, parse_spec
from madpo.types.columns import CONTENTS, NAMES, NUMBERS
from madpo.v1 import dataset_service_pb2 as datasets
from madpo.v1 import job_service_pb2 as jobs
from madpo.v1 import model_service_pb2 as models
from madpo.v1 import preference_pb2 as preference
from madpo.v1 import reward_service_pb2 as reward


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since the epoch; None stays unset."""
    return None if seconds is None else Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def seconds(time: Timestamp) -> float:
    """Inverse of `timestamp`."""
    return time.seconds + time.nanos / 1e9


def duration(span_s: float) -> Duration:
    """A span in seconds."""
    return Duration(seconds=int(span_s), nanos=int(span_s % 1 * 1e9))


def span_s(span: Duration) -> float:
    """Inverse of `duration`."""
    return span.seconds + span.nanos / 1e9


# ---- preference.proto


def content_to_proto(content: types.Content) -> preference.Content:
    """Text or messages."""
    message = preference.Content()
    _fill_content(message, content)
    return message


def _fill_content(message: preference.Content, content: types.Content) -> None:
    if isinstance(content, str):
        message.text = content
    else:
        message.conversation.messages.extend(map(_message_to_proto, content))


def content_from_proto(content: preference.Content, *, field: str) -> types.Content:
    """Raises InvalidArgumentError when neither text nor messages are given."""
    kind = content.WhichOneof("kind")
    if kind == "text":
        return content.text
    if kind == "conversation" and content.conversation.messages:
        return tuple(
            _message_from_proto(turn, field=f"{field}[{index}]")
            for index, turn in enumerate(content.conversation.messages)
        )
    violation = FieldViolation(field, "give text, or a conversation with at least one message")
    raise InvalidArgumentError(f"{field}: {violation.description}", [violation])


def _message_to_proto(message: types.Message) -> preference.Message:
    calls = [
        preference.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments) for call in message.tool_calls
    ]
    texts = {name: getattr(message, name) for name in types.MESSAGE_TEXTS}
    return preference.Message(role=message.role, content=message.content, tool_calls=calls, **texts)


def _message_from_proto(message: preference.Message, *, field: str) -> types.Message:
    calls = tuple(
        types.ToolCall(
            call.name,
            _checked_json(call.arguments_json, dict, field=f"{field}.tool_calls[{index}].arguments_json"),
            call.id if call.HasField("id") else None,
        )
        for index, call in enumerate(message.tool_calls)
    )
    texts = {name: getattr(message, name) for name in types.MESSAGE_TEXTS if message.HasField(name)}
    return types.Message(message.role, message.content, calls, **texts)


def options_to_proto(options: types.ChatOptions) -> preference.ChatOptions | None:
    """None where there are none."""
    if options == types.NO_OPTIONS:
        return None
    return preference.ChatOptions(tools_json=options.tools, template_kwargs_json=options.template_kwargs)


def options_from_proto(options: preference.ChatOptions, *, field: str) -> types.ChatOptions:
    """An unset message is none. Raises InvalidArgumentError naming the part that is not JSON of its sort."""
    tools = template_kwargs = None
    if options.HasField("tools_json"):
        tools = _checked_json(options.tools_json, list, field=f"{field}.tools_json")
    if options.HasField("template_kwargs_json"):
        template_kwargs = _checked_json(options.template_kwargs_json, dict, field=f"{field}.template_kwargs_json")
    return types.ChatOptions(tools, template_kwargs)


def _checked_json(text: str, sort: type, *, field: str) -> str:
    try:
        if isinstance(json.loads(text), sort):
            return text
    except (ValueError, RecursionError):
        pass
    violation = FieldViolation(field, f"must be JSON text of {'a list' if sort is list else 'an object'}")
    raise InvalidArgumentError(f"{field}: {violation.description}", [violation])


def pair_to_proto(pair: types.PreferencePair) -> preference.PreferencePair:
    """A pair with its id."""
    message = preference.PreferencePair(pair_id=pair.pair_id, options=options_to_proto(pair.options))
    # In place: messages that are made apart are copied into the one that holds them.
    _fill_content(message.prompt, pair.prompt)
    _fill_content(message.chosen, pair.chosen)
    _fill_content(message.rejected, pair.rejected)
    return message


def pair_from_proto(pair: preference.PreferencePair, *, field: str) -> types.PreferencePair:
    """Raises InvalidArgumentError naming the missing part."""
    return types.PreferencePair(
        prompt=content_from_proto(pair.prompt, field=f"{field}.prompt"),
        chosen=content_from_proto(pair.chosen, field=f"{field}.chosen"),
        rejected=content_from_proto(pair.rejected, field=f"{field}.rejected"),
        options=options_from_proto(pair.options, field=f"{field}.options"),
    )


def response_to_proto(
    prompt: types.Content, response: types.Content, options: types.ChatOptions = types.NO_OPTIONS
) -> preference.Response:
    """A response with its id."""
    return preference.Response(
        response_id=types.content_digest(prompt, response, options=options),
        prompt=content_to_proto(prompt),
        response=content_to_proto(response),
        options=options_to_proto(options),
    )


def response_from_proto(
    response: preference.Response, *, field: str
) -> tuple[types.Content, types.Content, types.ChatOptions]:
    """Prompt, response and options. Raises InvalidArgumentError naming the missing part."""
    return (
        content_from_proto(response.prompt, field=f"{field}.prompt"),
        content_from_proto(response.response, field=f"{field}.response"),
        options_from_proto(response.options, field=f"{field}.options"),
    )


# ---- reward_service.proto


def scored_pair_to_proto(pair: types.ScoredPair) -> reward.ScoredPair:
    """All fields and the margin."""
    return reward.ScoredPair(
        pair_id=pair.pair_id,
        chosen_reward=pair.chosen_reward,
        rejected_reward=pair.rejected_reward,
        reward_margin=pair.reward_margin,
        chosen_tokens=pair.chosen_tokens,
        rejected_tokens=pair.rejected_tokens,
        chosen_truncated=pair.chosen_truncated,
        rejected_truncated=pair.rejected_truncated,
    )


def scored_pair_from_proto(pair: reward.ScoredPair) -> types.ScoredPair:
    """The margin follows from the rewards."""
    return types.ScoredPair(
        pair_id=pair.pair_id,
        chosen_reward=pair.chosen_reward,
        rejected_reward=pair.rejected_reward,
        chosen_tokens=pair.chosen_tokens,
        rejected_tokens=pair.rejected_tokens,
        chosen_truncated=pair.chosen_truncated,
        rejected_truncated=pair.rejected_truncated,
    )


def scored_response_to_proto(response: types.ScoredResponse) -> reward.ScoredResponse:
    """All fields."""
    return reward.ScoredResponse(
        response_id=response.response_id, reward=response.reward, tokens=response.tokens, truncated=response.truncated
    )


def scored_response_from_proto(response: reward.ScoredResponse) -> types.ScoredResponse:
    """All fields."""
    return types.ScoredResponse(
        response_id=response.response_id, reward=response.reward, tokens=response.tokens, truncated=response.truncated
    )


def timings_to_proto(timings: types.ScoreTimings) -> reward.ScoreTimings:
    """Seconds to durations."""
    return reward.ScoreTimings(
        queue=duration(timings.queue_s), tokenize=duration(timings.tokenize_s), forward=duration(timings.forward_s)
    )


def reward_model_to_proto(info: types.RewardModelInfo) -> reward.RewardModel:
    """All fields."""
    return reward.RewardModel(
        model_id=info.model_id,
        revision=info.revision,
        tokenizer_sha256=info.tokenizer_sha256,
        template_sha256=info.template_sha256,
        max_tokens=info.max_tokens,
        dtype=info.dtype,
        activation=info.activation,
        max_pairs_per_request=info.max_pairs_per_request,
    )


def reward_model_from_proto(info: reward.RewardModel) -> types.RewardModelInfo:
    """All fields."""
    return types.RewardModelInfo(
        model_id=info.model_id,
        revision=info.revision,
        tokenizer_sha256=info.tokenizer_sha256,
        template_sha256=info.template_sha256,
        max_tokens=info.max_tokens,
        dtype=info.dtype,
        activation=info.activation,
        max_pairs_per_request=info.max_pairs_per_request,
    )


# ---- dataset_service.proto


def dataset_to_proto(dataset: types.Dataset) -> datasets.Dataset:
    """All fields."""
    return datasets.Dataset(
        dataset_id=dataset.dataset_id,
        display_name=dataset.display_name,
        kind=dataset.kind.value,
        rows=dataset.rows,
        size_bytes=dataset.size_bytes,
        create_time=timestamp(dataset.create_time),
        columns=dataset.columns,
        forms=[datasets.DatasetForm(name=form.name, rows=form.rows, columns=form.columns) for form in dataset.forms],
    )


def dataset_from_proto(dataset: datasets.Dataset) -> types.Dataset:
    """All fields."""
    return types.Dataset(
        dataset_id=dataset.dataset_id,
        display_name=dataset.display_name,
        kind=types.DatasetKind(dataset.kind),
        rows=dataset.rows,
        size_bytes=dataset.size_bytes,
        create_time=seconds(dataset.create_time),
        columns=tuple(dataset.columns),
        forms=tuple(
            types.DatasetForm(form.name, form.rows, dict(sorted(form.columns.items()))) for form in dataset.forms
        ),
    )


_ROW_VALUES = (*NUMBERS, *NAMES)


def dataset_row_to_proto(row: types.DatasetRow) -> datasets.DatasetRow:
    """All fields that the row has."""
    message = datasets.DatasetRow(row=row.row, options=options_to_proto(row.options))
    for name in CONTENTS:
        if (content := getattr(row, name, None)) is not None:
            getattr(message, name).CopyFrom(content_to_proto(content))
    for name in _ROW_VALUES:
        if (value := getattr(row, name, None)) is not None:
            setattr(message, name, value)
    if isinstance(row, types.ResponseList):
        message.responses.extend(map(content_to_proto, row.responses))
        message.scores.extend(row.scores)
    return message


def dataset_row_from_proto(message: datasets.DatasetRow) -> types.DatasetRow:
    """The row; its fields say of which kind."""
    fields: dict[str, Any] = {"row": message.row, "options": options_from_proto(message.options, field="options")}
    for name in CONTENTS:
        if message.HasField(name):
            fields[name] = content_from_proto(getattr(message, name), field=name)
    for name in _ROW_VALUES:
        if message.HasField(name):
            fields[name] = getattr(message, name)
    if message.responses:
        fields["responses"] = tuple(content_from_proto(each, field="responses") for each in message.responses)
        return types.ResponseList(**fields, scores=tuple(message.scores))
    if "chosen" in fields:
        return types.PreferencePair(**fields)
    return types.Completion(**fields) if "completion" in fields else types.PromptOnly(**fields)


# ---- job_service.proto


def spec_from_proto(spec: jobs.JobSpec) -> tuple[types.JobKind, JobSpec]:
    """The typed spec; unset fields take their defaults.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    name = spec.WhichOneof("spec")
    if name is None:
        kinds = ", ".join(kind.value for kind in SPEC_TYPES)
        raise InvalidArgumentError(f"spec: give one of {kinds}", [FieldViolation("spec", f"give one of {kinds}")])
    kind = types.JobKind(name)
    value = MessageToDict(getattr(spec, name), preserving_proto_field_name=True)
    return kind, parse_spec(kind, value)


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
    )


def progress_from_proto(progress: jobs.JobProgress) -> types.JobProgress:
    """All fields."""
    return types.JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        metrics=dict(progress.metrics),
        remaining_s=span_s(progress.remaining) if progress.HasField("remaining") else None,
        phase=progress.phase,
    )


def job_to_proto(job: types.Job) -> jobs.Job:
    """All fields."""
    message = jobs.Job(
        job_id=job.job_id,
        state=state_to_proto(job.state),
        spec=spec_to_proto(job.kind, job.spec),
        display_name=job.display_name,
        depends_on=job.depends_on,
        attempt=job.attempt,
        create_time=timestamp(job.create_time),
        start_time=timestamp(job.start_time),
        finish_time=timestamp(job.finish_time),
        reason=job.reason,
        cancel_requested=job.cancel_requested,
    )
    if job.progress is not None:
        message.progress.CopyFrom(progress_to_proto(job.progress))
    if job.result is not None:
        message.result.model_id = job.result.model_id or ""
        ParseDict(dict(job.result.summary), message.result.summary)
    return message


def job_from_proto(job: jobs.Job) -> types.Job:
    """All fields; the spec in its JSON form."""
    kind = types.JobKind(job.spec.WhichOneof("spec"))
    result = None
    if job.HasField("result"):
        result = types.JobResult(job.result.model_id or None, MessageToDict(job.result.summary))
    return types.Job(
        job_id=job.job_id,
        kind=kind,
        state=state_from_proto(job.state),
        spec=MessageToDict(getattr(job.spec, kind.value), preserving_proto_field_name=True),
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


# ---- model_service.proto


def file_to_proto(file: types.FileEntry) -> models.ModelFile:
    """All fields."""
    return models.ModelFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)


def file_from_proto(file: models.ModelFile) -> types.FileEntry:
    """All fields."""
    return types.FileEntry(file.path, file.size_bytes, file.sha256)


def model_to_proto(model: types.Model) -> models.Model:
    """All fields."""
    message = models.Model(
        model_id=model.model_id,
        display_name=model.display_name,
        kind=model.kind,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        create_time=timestamp(model.create_time),
        files=[file_to_proto(file) for file in model.files],
        base_model_id=model.base_model_id or "",
    )
    ParseDict(dict(model.metadata), message.metadata)
    return message


def model_from_proto(model: models.Model) -> types.Model:
    """All fields."""
    return types.Model(
        model_id=model.model_id,
        display_name=model.display_name,
        kind=model.kind,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        create_time=seconds(model.create_time),
        files=tuple(file_from_proto(file) for file in model.files),
        base_model_id=model.base_model_id or None,
        metadata=MessageToDict(model.metadata),
    )


def checkpoint_to_proto(checkpoint: types.Checkpoint) -> models.Checkpoint:
    """All fields."""
    return models.Checkpoint(
        job_id=checkpoint.job_id,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        create_time=timestamp(checkpoint.create_time),
        size_bytes=checkpoint.size_bytes,
    )


def checkpoint_from_proto(checkpoint: models.Checkpoint) -> types.Checkpoint:
    """All fields."""
    return types.Checkpoint(
        job_id=checkpoint.job_id,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        create_time=seconds(checkpoint.create_time),
        size_bytes=checkpoint.size_bytes,
    )
