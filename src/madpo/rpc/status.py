"""One table between domain errors and gRPC status codes, both ways.

An error travels as `google.rpc.Status`: ErrorInfo names the class, BadRequest carries field violations, RetryInfo a
retry hint. Only InternalError hides its text: clients get the request id, the log has the traceback.
"""

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from madpo import errors
from madpo.errors import FieldViolation, MadpoError

CODES: dict[type[MadpoError], grpc.StatusCode] = {
    errors.InvalidPairError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BeingRemovedError: grpc.StatusCode.NOT_FOUND,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.RevisionMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnknownFormatError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleAttemptError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CorruptObjectError: grpc.StatusCode.DATA_LOSS,
    errors.NonFiniteError: grpc.StatusCode.INTERNAL,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_BY_NAME = {error.__name__: error for error in CODES}
_BY_CODE: dict[grpc.StatusCode, type[MadpoError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.CANCELLED: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.DATA_LOSS: errors.CorruptObjectError,
}
_DOMAIN = "madpo"
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE_BYTES, _MAX_VIOLATION_BYTES, _MAX_VIOLATIONS_BYTES = 1500, 600, 2800
"""Trailing metadata of more than 8 KiB may not arrive. The message is in it twice, and what is packed grows by a third.
What does not fit is left out, from the end."""
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


def to_status(
    error: MadpoError, *, request_id: str
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Code, text and trailing metadata for an error.

    An OverloadedError without a hint forbids gRPC's own retries (pushback -1): the request can never pass.
    """
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    message = f"internal error, request {request_id}" if isinstance(error, errors.InternalError) else str(error)
    message = _shortened(message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=_DOMAIN, metadata={"request_id": request_id})
    status.details.add().Pack(info)
    trailers: list[tuple[str, str | bytes]] = []
    if isinstance(error, errors.InvalidArgumentError) and error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(
                field=_shortened(violation.field, _MAX_VIOLATION_BYTES),
                description=_shortened(violation.description, _MAX_VIOLATION_BYTES),
            )
            if bad.ByteSize() > _MAX_VIOLATIONS_BYTES:
                bad.field_violations.pop()
                break
        status.details.add().Pack(bad)
    if isinstance(error, errors.NonFiniteError) and error.pair_ids:
        status.details.add().Pack(error_details_pb2.DebugInfo(stack_entries=error.pair_ids))
    if isinstance(error, errors.OverloadedError):
        pushback_ms = -1
        if error.retry_after_s is not None:
            pushback_ms = round(error.retry_after_s * 1000)
            status.details.add().Pack(
                error_details_pb2.RetryInfo(
                    retry_delay=Duration(nanos=pushback_ms % 1000 * 10**6, seconds=pushback_ms // 1000)
                )
            )
        trailers.append((_PUSHBACK_KEY, str(pushback_ms)))
    trailers.append((_DETAILS_KEY, status.SerializeToString()))
    return code, message, tuple(trailers)


def _shortened(text: str, limit_bytes: int) -> str:
    """As much of a text as takes so many bytes where gRPC escapes all but printable ASCII; half characters as `?`."""
    size_bytes, text = 0, text.encode(errors="replace").decode()
    for place, character in enumerate(text):
        size_bytes += 1 if " " <= character <= "~" else 3 * len(character.encode())
        if size_bytes > limit_bytes:
            return f"{text[:place]}..."
    return text


def from_rpc_error(error: grpc.aio.AioRpcError) -> MadpoError:
    """The domain error a failed call carries; unknown codes become InternalError."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    trailers: dict[str, Any] = dict(cast(Iterable[tuple[str, Any]], error.trailing_metadata() or ()))
    if _DETAILS_KEY not in trailers:
        kind = _BY_CODE.get(code, errors.InternalError)
        return kind(message)
    status = status_pb2.Status.FromString(trailers[_DETAILS_KEY])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, debug = error_details_pb2.RetryInfo(), error_details_pb2.DebugInfo()
    for detail in status.details:
        for target in (info, bad, retry, debug):
            detail.Unpack(target)
    kind = _BY_NAME.get(info.reason, _BY_CODE.get(code, errors.InternalError))
    if issubclass(kind, errors.InvalidArgumentError):
        violations = [FieldViolation(violation.field, violation.description) for violation in bad.field_violations]
        return kind(message, violations)
    if issubclass(kind, errors.OverloadedError):
        hint = retry.retry_delay.ToNanoseconds() / 1e9
        return kind(message, hint or None)
    if issubclass(kind, errors.NonFiniteError):
        return kind(message, list(debug.stack_entries))
    return kind(message)
