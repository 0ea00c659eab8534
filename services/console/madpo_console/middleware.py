"""What stands before every request: a bound of its size, and headers that bind the browser."""

from collections.abc import Collection, Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class BoundHeaders:
    """ASGI middleware: nothing but what is served here is loaded or framed, and only what never changes is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                is_kept = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "public, max-age=3600" if is_kept else "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


class BodyLimit:
    """ASGI middleware: a body of more bytes than are taken ends the request, also one that does not say its length.

    Args:
        app: What it stands before.
        most_bytes: Of a request.
        uploads: Paths that take files.
        most_upload_bytes: Of a request to them.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, uploads: Collection[str], most_upload_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes
        self._uploads, self._most_upload_bytes = uploads, most_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most_upload_bytes if scope["path"] in self._uploads else self._most_bytes
        too_large = HTTPException(
            413, f"a request has at most {most} bytes here; `madpo dataset upload` takes files of any size"
        )
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large
            return message

        await self._app(scope, bounded, send)
