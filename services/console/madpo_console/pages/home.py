"""The first page, and the one about the system itself."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from madpo.losses.registry import METHODS
from madpo_console.callers import Asking
from madpo_console.pages.rendering import render

router = APIRouter()


@router.get("/")
def show_home(asking: Asking) -> Response:
    """What is going on."""
    return RedirectResponse("/jobs", status_code=303)


@router.get("/system")
def show_system(request: Request, asking: Asking) -> Response:
    """Who asks, and what answers."""
    server = asking.client.server_info()
    return render(
        request, "system.html", asking=asking, server=server, methods=len(METHODS), base_url=str(request.base_url)
    )
