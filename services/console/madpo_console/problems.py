"""Errors as HTTP: the status of each, and its form for programs and for people."""

from typing import Any

import grpc
from fastapi import Request
from fastapi.exceptions import RequestValidationError

from madpo.errors import FieldViolation, InvalidArgumentError, MadpoError, OverloadedError
from madpo.rpc.status import CODES

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_PLACES = ("body", "query", "path", "header", "cookie")


def status_of(error: MadpoError) -> int:
    """The HTTP status of an error; 500 of what is nobody's but ours."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return _STATUSES.get(code, 500)


def headers_of(error: MadpoError) -> dict[str, str]:
    """When to try again, where that is known."""
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        return {"Retry-After": str(max(1, round(error.retry_after_s)))}
    return {"WWW-Authenticate": "Bearer"} if status_of(error) == 401 else {}


def as_json(error: MadpoError) -> dict[str, Any]:
    """What programs get of an error."""
    violations = error.violations if isinstance(error, InvalidArgumentError) else ()
    fields = [{"field": each.field, "description": each.description} for each in violations]
    return {"error": {"kind": type(error).__name__, "message": str(error), "violations": fields}}


def of_validation(error: RequestValidationError) -> InvalidArgumentError:
    """What FastAPI found wrong with a request, as one of our errors."""
    violations = []
    for each in error.errors():
        place = [str(part) for part in each["loc"]]
        if len(place) > 1 and place[0] in _PLACES:
            place = place[1:]
        violations.append(FieldViolation(".".join(place), each["msg"].removeprefix("Value error, ")))
    return InvalidArgumentError.of(violations)


def wants_page(request: Request) -> bool:
    """Whether a person in a browser asks, who is better served by a page."""
    path = request.url.path
    return not path.startswith(("/v1/", "/api/")) and "text/html" in request.headers.get("accept", "")
