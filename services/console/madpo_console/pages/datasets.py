"""Pages of datasets and their rows."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from madpo.data.written import row_to_json
from madpo_console.callers import Asking
from madpo_console.pages.rendering import render

router = APIRouter()

_ROWS_A_PAGE = 10


@router.get("/datasets")
def show_datasets(request: Request, asking: Asking) -> Response:
    """All datasets."""
    return render(request, "datasets.html", asking=asking, datasets=asking.client.datasets.list())


@router.get("/datasets/{dataset_id}")
def show_dataset(request: Request, asking: Asking, dataset_id: str, first: Annotated[int, Query(ge=0)] = 0) -> Response:
    """One dataset, and some of its rows."""
    dataset = asking.client.datasets.get(dataset_id)
    numbers = range(min(first, dataset.rows) + 1, min(first + _ROWS_A_PAGE, dataset.rows) + 1)
    rows = asking.client.datasets.read_rows(dataset.dataset_id, numbers)
    shown = [(number, _parts(row_to_json(row))) for number, row in zip(numbers, rows, strict=True)]
    return render(
        request, "dataset.html", asking=asking, dataset=dataset, rows=shown, first=first, rows_a_page=_ROWS_A_PAGE
    )


def _parts(row: dict[str, Any]) -> dict[str, Any]:
    """A row's texts and messages, each as people read it; the rest as it is."""
    return {name: _messages(value) if isinstance(value, list) else value for name, value in row.items()}


def _messages(value: list[Any]) -> list[Any]:
    return [
        (str(each.get("role", "")), each.get("content") if isinstance(each.get("content"), str) else str(each))
        if isinstance(each, dict)
        else ("", str(each))
        for each in value
    ]
