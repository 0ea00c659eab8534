"""Logging in: by a link that is good once, or with a token."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from madpo.errors import UnauthenticatedError
from madpo_console.callers import Clients, cookie_name, require_same_origin
from madpo_console.pages.rendering import render
from madpo_console.sessions import Sessions

router = APIRouter()


@router.get("/login")
def show_login(request: Request, code: str | None = None, back: Annotated[str, Query(alias="next")] = "/") -> Response:
    """The form; with the code of a link, straight in."""
    if code is None:
        return render(request, "login.html", next=_inside(back), problem="")
    sessions: Sessions = request.app.state.sessions
    session = sessions.redeem(code)
    if session is None:
        problem = "This link was used before, or is too old: `madpo console` prints a new one."
        return render(request, "login.html", next=_inside(back), problem=problem, status=401)
    return _let_in(request, session, back)


@router.post("/login")
def log_in(
    request: Request,
    token: Annotated[str, Form(max_length=1000)],
    back: Annotated[str, Form(alias="next")] = "/",
) -> Response:
    """With a token."""
    require_same_origin(request)
    clients: Clients = request.app.state.clients
    try:
        asker = clients.of(token.strip())
    except UnauthenticatedError as error:
        return render(request, "login.html", next=_inside(back), problem=str(error), status=401)
    return _let_in(request, request.app.state.sessions.open(asker.token), back)


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session of this browser."""
    require_same_origin(request)
    request.app.state.sessions.close(request.cookies.get(cookie_name(request), ""))
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(cookie_name(request), path="/")
    return response


def _let_in(request: Request, session: str, path: str) -> Response:
    settings = request.app.state.settings
    response = RedirectResponse(_inside(path), status_code=303)
    response.set_cookie(
        cookie_name(request),
        session,
        max_age=round(settings.session_s),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


def _inside(path: str) -> str:
    """The path, if it is one of this console."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_ours else "/"
