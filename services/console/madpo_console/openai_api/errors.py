"""Errors in OpenAI's shape, which its clients turn into exceptions of their own."""

from typing import Any

from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError
from madpo_console.problems import status_of

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_status(error: MadpoError) -> int:
    """As elsewhere, but not 409 for a wrong state: OpenAI's clients would ask again, in vain."""
    return 400 if isinstance(error, FailedPreconditionError) else status_of(error)


def openai_error(error: MadpoError) -> dict[str, Any]:
    """The body of an answer."""
    status = openai_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    violations = error.violations if isinstance(error, InvalidArgumentError) else ()
    param = violations[0].field if violations else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": type(error).__name__}}
