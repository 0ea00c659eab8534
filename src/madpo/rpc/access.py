"""Who may call a server, and what is noted of it."""

import hmac
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from madpo.errors import UnauthenticatedError
from madpo.types import AuditRecord, Caller, Role

_caller: ContextVar[Caller] = ContextVar("caller")
_MAX_SUBJECT_CHARS = 200


class Access(Protocol):
    """Decides about the calls to a server."""

    @property
    def recheck_s(self) -> float | None:
        """How often calls that go on are checked again, in seconds; None where nothing about a caller ever changes."""
        ...

    async def recheck(self) -> None:
        """Learn what has changed about callers, before calls that go on are checked again; within seconds."""
        ...

    async def identify(self, token: str | None) -> Caller:
        """Whose call it is, by its bearer token.

        Raises:
            UnauthenticatedError: No token, or none that is valid.
            OverloadedError: The token's rate is used up.
        """
        ...

    def check(self, caller: Caller, method: str) -> None:
        """Make sure, before a call, between two messages of a stream and every `recheck_s`, that it may go on.

        Args:
            caller: Whose it is.
            method: `/madpo.v1.JobService/CreateJob`.

        Raises:
            UnauthenticatedError: The token is not valid any more.
            PermissionDeniedError: Its role does not allow the method.
            UnavailableError: It has not been known for long whether the token is valid.
        """
        ...

    def take_bytes(self, caller: Caller, count: int) -> None:
        """Count bytes that a caller's uploads bring.

        Raises:
            OverloadedError: There were none left to take.
        """
        ...

    def is_noted(self, method: str) -> bool:
        """Whether `note` is to be told of calls to this method."""
        ...

    async def note(self, record: AuditRecord) -> None:
        """Keep what was called; never raises."""
        ...


class SharedToken:
    """One token for every caller and every method; None lets everybody in. An `Access`."""

    recheck_s = None

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def recheck(self) -> None:
        """Nothing changes."""

    async def identify(self, token: str | None) -> Caller:
        """See `Access`."""
        if self._token is not None and not hmac.compare_digest(require_token(token).encode(), self._token.encode()):
            raise UnauthenticatedError("wrong bearer token (the server's token file holds the right one)")
        return Caller("", Role.ADMIN)

    def check(self, caller: Caller, method: str) -> None:
        """The token holds as long as the server runs."""

    def take_bytes(self, caller: Caller, count: int) -> None:
        """Nothing is counted."""

    def is_noted(self, method: str) -> bool:
        """Nothing is."""
        return False

    async def note(self, record: AuditRecord) -> None:
        """Nothing is kept."""


def require_token(token: str | None) -> str:
    """The token, if there is one. Raises UnauthenticatedError."""
    if token is None:
        raise UnauthenticatedError("no bearer token in the call (set MADPO_TOKEN_FILE or --token-file)")
    return token


def bind_caller(caller: Caller) -> None:
    """Say whose call this task serves."""
    _caller.set(caller)


def current_caller() -> Caller:
    """Whose call this task serves."""
    return _caller.get()


def subjects_of(*messages: Message) -> tuple[str, ...]:
    """What a request and its answer are about: ids and names in them, and in what they hold, once each."""
    found = (
        f"{field.name}={str(value)[:_MAX_SUBJECT_CHARS]}"
        for message in messages
        for field, value in _texts(message, depth=1)
        if value and (field.name in ("name", "display_name") or field.name.endswith("_id"))
    )
    return tuple(dict.fromkeys(found))


def _texts(message: Message, *, depth: int) -> Iterator[tuple[FieldDescriptor, str]]:
    for field, value in message.ListFields():
        if field.is_repeated:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            yield field, value
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth:
            yield from _texts(value, depth=depth - 1)
