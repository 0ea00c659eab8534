"""Who asks, and the client that asks the gateway for them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from madpo.errors import PermissionDeniedError, UnauthenticatedError
from madpo.types import Caller
from madpo_client import Client
from madpo_console.sessions import Sessions
from madpo_console.settings import ConsoleSettings

COOKIE = "madpo_session"
_MOST_CLIENTS = 256
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Asker:
    """Whoever sent a request: what opens the gateway for them, and what the gateway calls them."""

    token: str
    client: Client
    caller: Caller


class Clients:
    """Clients of the gateway, one for each token that it has taken; those used last are kept. Thread-safe."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._settings = settings
        self._askers: OrderedDict[str, Asker] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, token: str) -> Asker:
        """Whose token it is, and their client. The gateway looks at the token again with every call.

        Raises:
            UnauthenticatedError: The gateway does not know the token.
            UnavailableError: The gateway does not answer.
        """
        with self._lock:
            if found := self._askers.get(token):
                self._askers.move_to_end(token)
                return found
        client = self._open(token)
        try:
            asker = Asker(token, client, client.access.caller())
        except BaseException:
            client.close()
            raise
        with self._lock:
            kept = self._askers.setdefault(token, asker)
            dropped = self._askers.popitem(last=False)[1] if len(self._askers) > _MOST_CLIENTS else None
        for one in (dropped, asker if kept is not asker else None):
            if one is not None:
                one.client.close()
        return kept

    def forget(self, token: str) -> None:
        """Drop the client of a token that the gateway takes no more."""
        with self._lock:
            asker = self._askers.pop(token, None)
        if asker is not None:
            asker.client.close()

    def close(self) -> None:
        """Close all connections."""
        for token in list(self._askers):
            self.forget(token)

    def _open(self, token: str) -> Client:
        settings = self._settings
        return Client(
            settings.gateway, token=token, tls_ca=settings.gateway_tls_ca, plaintext=settings.gateway_plaintext
        )


def find_asker(request: Request) -> Asker:
    """Who asks: by a bearer token, as programs do, or by the session of a browser.

    Raises:
        UnauthenticatedError: By neither.
        PermissionDeniedError: A page from elsewhere asks a browser to change something.
    """
    clients: Clients = request.app.state.clients
    sessions: Sessions = request.app.state.sessions
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return _noted(request, clients.of(_printable(token.strip())))
    session_token = sessions.token(request.cookies.get(COOKIE, ""))
    if session_token is None:
        raise UnauthenticatedError("who asks? send `Authorization: Bearer TOKEN`, or log in (`madpo console`)")
    if request.method not in _SAFE:
        require_same_origin(request)
    return _noted(request, clients.of(session_token))


def _noted(request: Request, asker: Asker) -> Asker:
    """For the page of an error, which is made without it."""
    request.state.asking = asker
    return asker


def require_same_origin(request: Request) -> None:
    """Raises PermissionDeniedError where a browser's request was caused by a page of another site."""
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc != request.headers.get("host"):
        raise PermissionDeniedError("only this console's own pages may ask a logged-in browser to change something")


def _printable(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise UnauthenticatedError("the bearer token has characters that no token has")
    return token


Asking = Annotated[Asker, Depends(find_asker)]
"""Parameter of every call that is not open to all."""
