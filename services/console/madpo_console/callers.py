"""Who asks, and the client that asks the gateway for them."""

import threading
import time
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

RECHECK_S = 5.0
"""A token that was revoked opens nothing here any more after so long, as at a gateway."""
_MOST_CLIENTS = 256
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Asker:
    """Whoever sent a request: what opens the gateway for them, and what the gateway calls them."""

    token: str
    client: Client
    caller: Caller
    known_at: float
    """When the gateway last said so, by the monotonic clock."""


class Clients:
    """Clients of the gateway, one for each token that it has taken; those used last are kept. Thread-safe.

    One that is dropped closes once nobody uses it any more: its channel ends with the last reference to it.
    """

    def __init__(self, settings: ConsoleSettings) -> None:
        self._settings = settings
        self._askers: OrderedDict[str, Asker] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, token: str) -> Asker:
        """Whose token it is, and their client. The gateway is asked again once some seconds have passed.

        Raises:
            UnauthenticatedError: The gateway does not know the token.
            UnavailableError: The gateway does not answer.
        """
        if not (token.isascii() and token.isprintable()):
            raise UnauthenticatedError("the bearer token has characters that no token has")
        found = self._askers.get(token)
        now = time.monotonic()
        if found is not None and now - found.known_at < RECHECK_S:
            return found
        client = self._open(token) if found is None else found.client
        try:
            asker = Asker(token, client, client.access.caller(), now)
        except UnauthenticatedError:
            with self._lock:
                self._askers.pop(token, None)
            raise
        with self._lock:
            self._askers[token] = asker
            self._askers.move_to_end(token)
            if len(self._askers) > _MOST_CLIENTS:
                self._askers.popitem(last=False)
        return asker

    def close(self) -> None:
        """Close all connections."""
        for asker in list(self._askers.values()):
            asker.client.close()

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
        return _noted(request, clients.of(token.strip()))
    session_token = sessions.token(request.cookies.get(cookie_name(request), ""))
    if session_token is None:
        raise UnauthenticatedError("who asks? send `Authorization: Bearer TOKEN`, or log in (`madpo console`)")
    if request.method not in _SAFE:
        require_same_origin(request)
    return _noted(request, clients.of(session_token))


def cookie_name(request: Request) -> str:
    """Of this console alone: a browser sends the cookies of a host to all its ports."""
    return f"madpo_session_{request.url.port or 0}"


def _noted(request: Request, asker: Asker) -> Asker:
    """For the page of an error, which is made without it."""
    request.state.asking = asker
    return asker


def require_same_origin(request: Request) -> None:
    """Raises PermissionDeniedError where a browser's request was caused by a page of another site."""
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc != request.headers.get("host"):
        raise PermissionDeniedError("only this console's own pages may ask a logged-in browser to change something")


Asking = Annotated[Asker, Depends(find_asker)]
"""Parameter of every call that is not open to all."""
