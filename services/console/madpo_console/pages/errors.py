"""Pages that say what is wrong."""

from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from madpo.errors import MadpoError
from madpo_console.pages.rendering import render
from madpo_console.problems import status_of

_TITLES = {400: "This cannot be asked", 403: "Not allowed", 404: "Not found", 409: "Not now", 429: "Too much at once"}


def page(request: Request, error: MadpoError) -> Response:
    """The error in its own words."""
    status = status_of(error)
    title = _TITLES.get(status, "The gateway does not answer" if status in (503, 504) else "Something is wrong")
    asking = getattr(request.state, "asking", None)
    return render(request, "error.html", asking=asking, status=status, title=title, message=str(error))


def to_login(request: Request) -> Response:
    """The page to log in, which leads back here."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(path, safe='')}", status_code=303)
