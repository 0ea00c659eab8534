"""Rows of datasets as columns of Parquet and Arrow.

Row (int64), the contents (JSON text), the numbers of a pair (double), the responses (JSON text each) and scores of a
list, what the chat template is given (JSON text), and what the file calls the row; null where the row has none.
"""

import json
from typing import Any

import pyarrow as pa

from madpo.types import (
    ChatOptions,
    Completion,
    Content,
    DatasetKind,
    DatasetRow,
    PreferencePair,
    PromptOnly,
    ResponseList,
    content_from_json,
    content_to_json,
    json_text,
)
from madpo.types.columns import CONTENTS, NAMES, NUMBERS, OPTION_COLUMNS

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in CONTENTS),
        *((name, pa.float64()) for name in NUMBERS),
        ("responses", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        *((name, pa.string()) for name in (*OPTION_COLUMNS, *NAMES)),
    ]
)
ROW_TYPES: dict[DatasetKind, type[DatasetRow]] = {
    DatasetKind.PREFERENCE: PreferencePair,
    DatasetKind.LIST: ResponseList,
    DatasetKind.COMPLETION: Completion,
    DatasetKind.PROMPT: PromptOnly,
}


def encode_row(row: DatasetRow) -> dict[str, Any]:
    """The columns that a row has, as they are kept."""
    columns: dict[str, Any] = {"row": row.row}
    columns |= {name: getattr(row.options, field) for name, field in OPTION_COLUMNS.items()}
    columns |= {name: getattr(row, name) for name in NAMES}
    for name in CONTENTS:
        if (content := getattr(row, name, None)) is not None:
            columns[name] = _to_text(content)
    for name in NUMBERS:
        if (number := getattr(row, name, None)) is not None:
            columns[name] = float(number)
    if isinstance(row, ResponseList):
        columns["responses"] = [_to_text(response) for response in row.responses]
        columns["scores"] = [float(score) for score in row.scores]
    return {name: value for name, value in columns.items() if value is not None}


def decode_row(columns: dict[str, Any], kind: DatasetKind) -> DatasetRow:
    """A row of a dataset of some kind from its columns."""
    fields = {name: value for name, value in columns.items() if value is not None}
    options = {field: fields.pop(name) for name, field in OPTION_COLUMNS.items() if name in fields}
    if options:
        fields["options"] = ChatOptions(**options)
    for name in CONTENTS:
        if name in fields:
            fields[name] = _from_text(fields[name])
    if kind is DatasetKind.LIST:
        fields["responses"] = tuple(map(_from_text, fields["responses"]))
        fields["scores"] = tuple(fields["scores"])
    return ROW_TYPES[kind](**fields)


def with_all_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the columns that were not yet known when it was stored."""
    names = batch.schema.names
    columns = [
        batch[field.name].cast(field.type) if field.name in names else pa.nulls(batch.num_rows, field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _to_text(content: Content) -> str:
    return json_text(content_to_json(content))


def _from_text(text: str) -> Content:
    return content_from_json(json.loads(text))
