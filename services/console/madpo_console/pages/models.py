"""The page of models."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from madpo_console.callers import Asking
from madpo_console.pages.rendering import render

router = APIRouter()


@router.get("/models")
def show_models(request: Request, asking: Asking) -> Response:
    """All models."""
    return render(request, "models.html", asking=asking, models=asking.client.models.list())
