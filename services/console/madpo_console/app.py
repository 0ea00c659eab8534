"""The application: OpenAI's API, our own, and the pages; all by the SDK, with the token of whoever asks."""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from madpo.errors import InternalError, InvalidArgumentError, MadpoError, NotFoundError, UnauthenticatedError
from madpo_console import pages
from madpo_console.callers import Clients
from madpo_console.following import Following
from madpo_console.middleware import BodyLimit, BoundHeaders
from madpo_console.openai_api import files, fine_tuning
from madpo_console.openai_api import models as openai_models
from madpo_console.openai_api.errors import openai_error, openai_status
from madpo_console.pages import errors as error_pages
from madpo_console.problems import as_json, headers_of, of_validation, status_of, wants_page
from madpo_console.rest import datasets, jobs, models, system
from madpo_console.sessions import Sessions
from madpo_console.settings import ConsoleSettings

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
"""Of a request; of one with a file, beside that."""
_UPLOADS = frozenset({"/v1/files", "/api/datasets"})
_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


def make_app(settings: ConsoleSettings) -> FastAPI:
    """The whole of it."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_empty, settings.scratch)
        tempfile.tempdir = str(settings.scratch)  # where Starlette keeps what is on its way
        app.state.following = Following()
        yield
        await app.state.following.close()
        await asyncio.to_thread(app.state.clients.close)

    app = FastAPI(
        title="madpo",
        description="OpenAI's files and fine-tuning jobs under /v1, everything else under /api.",
        version=version("madpo"),
        openapi_url="/api/openapi.json",
        docs_url=None,  # the pages of FastAPI load scripts from elsewhere
        redoc_url=None,
        lifespan=living,
    )
    app.state.settings = settings
    app.state.clients = Clients(settings)
    app.state.sessions = Sessions(settings.session_s)
    for router in (files.router, fine_tuning.router, openai_models.router):
        app.include_router(router)
    for router in (jobs.router, datasets.router, models.router, system.router):
        app.include_router(router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "pages" / "static"), name="static")
    app.get("/health", include_in_schema=False)(_health)
    _answer_errors(app)
    app.add_middleware(
        BodyLimit,
        most_bytes=_MOST_BYTES,
        uploads=_UPLOADS,
        most_upload_bytes=settings.max_upload_bytes + _MOST_BYTES,
    )
    app.add_middleware(BoundHeaders)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, *settings.names], www_redirect=False)
    return app


async def _health() -> PlainTextResponse:  # no thread: also where all are busy
    return PlainTextResponse("serving")


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(MadpoError)
    async def refuse(request: Request, error: MadpoError) -> Response:
        if request.url.path.startswith("/v1/"):
            return JSONResponse(openai_error(error), openai_status(error), headers=headers_of(error))
        if isinstance(error, UnauthenticatedError) and request.headers.get("hx-request") == "true":
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        if wants_page(request):
            if isinstance(error, UnauthenticatedError):
                return error_pages.to_login(request)
            return error_pages.page(request, error)
        return JSONResponse(as_json(error), status_of(error), headers=headers_of(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_form(request: Request, error: RequestValidationError) -> Response:
        return await refuse(request, of_validation(error))

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return await refuse(request, NotFoundError(f"there is nothing at {request.url.path}"))
        wrong = InvalidArgumentError(str(error.detail))
        answer = openai_error(wrong) if request.url.path.startswith("/v1/") else as_json(wrong)
        return JSONResponse(answer, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error, extra={"path": request.url.path})
        return await refuse(request, InternalError("something is wrong here; the console's log says what"))


def _empty(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
