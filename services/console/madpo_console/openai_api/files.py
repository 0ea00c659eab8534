"""`/v1/files`: datasets, as OpenAI's clients know files. A file's id is that of the dataset, by its content."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from madpo.data.written import row_to_json
from madpo.errors import InvalidArgumentError
from madpo.types import Dataset, DatasetRow
from madpo_console.callers import Asking
from madpo_console.openai_api.listing import After, page
from madpo_console.uploads import Uploaded, spooled, takes_file

router = APIRouter(prefix="/v1/files", tags=["OpenAI: files"])

_PURPOSE = "fine-tune"


@router.post("", openapi_extra=takes_file(purpose=_PURPOSE))
def create_file(request: Request, asking: Asking, form: Uploaded) -> dict[str, Any]:
    """Upload rows to train on (`file`, `purpose`); every row is checked, and a wrong one is named."""
    purpose = form.get("purpose")
    if purpose != _PURPOSE:
        raise InvalidArgumentError.in_field("purpose", f"must be {_PURPOSE}, got {purpose!r:.60}")
    for name in sorted(form.keys() - {"file", "purpose"}):
        raise InvalidArgumentError.in_field(name, "is not offered: files stay until they are deleted")
    with spooled(form, request.app.state.settings.scratch) as path:
        return _shape(asking.client.datasets.upload(path, name=path.name))


@router.get("")
def list_files(
    asking: Asking,
    purpose: str | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """All datasets, the newest first."""
    found = asking.client.datasets.list() if purpose in (None, _PURPOSE) else []
    newest_first = sorted(found, key=lambda dataset: dataset.create_time, reverse=order == "desc")
    return page(newest_first, _shape, id_of=lambda dataset: dataset.dataset_id, after=after, limit=limit)


@router.get("/{file_id}")
def retrieve_file(asking: Asking, file_id: str) -> dict[str, Any]:
    """One dataset."""
    return _shape(asking.client.datasets.get(file_id))


@router.get("/{file_id}/content")
def retrieve_file_content(asking: Asking, file_id: str) -> StreamingResponse:
    """Its rows as JSON Lines, in one form whatever they came in; uploaded again, they are the same dataset."""
    rows = asking.client.datasets.rows(asking.client.datasets.get(file_id))
    return StreamingResponse(_lines(rows), media_type="application/jsonl")


@router.delete("/{file_id}")
def delete_file(asking: Asking, file_id: str) -> dict[str, Any]:
    """Delete a dataset that no job needs."""
    return {"id": asking.client.datasets.delete(file_id), "object": "file", "deleted": True}


def _lines(rows: Iterator[DatasetRow]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row_to_json(row), ensure_ascii=False) + "\n"


def _shape(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.dataset_id,
        "object": "file",
        "bytes": dataset.size_bytes,
        "created_at": int(dataset.create_time),
        "filename": dataset.display_name,
        "purpose": _PURPOSE,
        "status": "processed",
        "status_details": None,
    }
