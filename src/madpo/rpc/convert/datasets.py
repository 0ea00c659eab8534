"""Datasets and their rows: dataset_service.proto."""

from typing import Any

from madpo import types
from madpo.rpc.convert.preference import content_from_proto, content_to_proto, options_from_proto, options_to_proto
from madpo.rpc.convert.times import seconds, timestamp
from madpo.types.columns import CONTENTS, NAMES, NUMBERS
from madpo.v1 import dataset_service_pb2 as datasets


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
