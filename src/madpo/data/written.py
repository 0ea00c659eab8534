"""Rows as files have them: what is written here is read again as the same row."""

import json
from typing import Any

from madpo.types import DatasetRow, ResponseList, content_to_json
from madpo.types.columns import COLUMNS, OPTION_COLUMNS


def row_to_json(row: DatasetRow) -> dict[str, Any]:
    """A row under the names that uploads know, without what it does not have."""
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        value = getattr(row, column.name, None)
        if value is not None:
            columns[column.file_name] = content_to_json(value) if column.sort == "content" else value
    if isinstance(row, ResponseList):
        columns |= {"responses": [content_to_json(each) for each in row.responses], "scores": list(row.scores)}
    for name, field in OPTION_COLUMNS.items():
        if (text := getattr(row.options, field)) is not None:
            columns[name] = json.loads(text)
    return columns
