"""`/api/datasets`: rows to train on."""

from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from madpo.data.written import row_to_json
from madpo_console.callers import Asking
from madpo_console.uploads import Uploaded, spooled, takes_file

router = APIRouter(prefix="/api/datasets", tags=["datasets"])


@router.get("")
def list_datasets(asking: Asking, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> list[dict[str, Any]]:
    """Datasets, the one stored last first."""
    return [asdict(dataset) for dataset in islice(asking.client.datasets.list(), limit)]


@router.post("", status_code=201, openapi_extra=takes_file())
def upload_dataset(
    request: Request, asking: Asking, form: Uploaded, name: Annotated[str | None, Query(max_length=200)] = None
) -> dict[str, Any]:
    """Upload rows (`file`) in any form and format of docs/data.md."""
    with spooled(form, request.app.state.settings.scratch) as path:
        return asdict(asking.client.datasets.upload(path, name=name))


@router.get("/{dataset_id}")
def get_dataset(asking: Asking, dataset_id: str) -> dict[str, Any]:
    """One dataset."""
    return asdict(asking.client.datasets.get(dataset_id))


@router.get("/{dataset_id}/rows")
def read_rows(
    asking: Asking,
    dataset_id: str,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> list[dict[str, Any]]:
    """Some of its rows, counted from 1 as everywhere, in the form that they can be uploaded in."""
    dataset = asking.client.datasets.get(dataset_id)
    numbers = range(min(offset, dataset.rows) + 1, min(offset + limit, dataset.rows) + 1)
    rows = asking.client.datasets.read_rows(dataset.dataset_id, numbers)
    return [{"row": number, **row_to_json(row)} for number, row in zip(numbers, rows, strict=True)]


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(asking: Asking, dataset_id: str) -> None:
    """Delete a dataset that no job needs."""
    asking.client.datasets.delete(dataset_id)
