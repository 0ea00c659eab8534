"""What happens around every call: request id, authentication, log line, metrics, errors to status codes."""

import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

import grpc
import structlog

from madpo import errors
from madpo.rpc.channel import TIME_KEY, VERSION_KEY
from madpo.rpc.status import to_status
from madpo.telemetry.metrics import RpcMetrics

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
_OPEN_PREFIXES = ("/grpc.health.v1.Health/",)
_VERSION = version("madpo")


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every handler of a server.

    Args:
        token: Bearer token every call must carry, health checks excepted; None lets everybody in.
        metrics: Where calls are counted.
    """

    def __init__(self, *, token: str | None, metrics: RpcMetrics) -> None:
        self._token = token
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Replace the handler by one that runs inside `_call`."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        if handler.response_streaming:
            behavior: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def respond_stream(request: Any, context: Any) -> AsyncIterator[Any]:
                async with _Call(self, method, metadata, context):
                    async for response in behavior(request, context):
                        yield response

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(respond_stream, handler.request_deserializer, handler.response_serializer)
        behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def respond(request: Any, context: Any) -> Any:
            async with _Call(self, method, metadata, context):
                return await behavior(request, context)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(respond, handler.request_deserializer, handler.response_serializer)

    def authenticate(self, method: str, metadata: dict[str, Any]) -> None:
        """Raises UnauthenticatedError unless the call carries the token."""
        if self._token is None or method.startswith(_OPEN_PREFIXES):
            return
        given = str(metadata.get("authorization", ""))
        if not given.startswith("Bearer "):
            raise errors.UnauthenticatedError("no bearer token in the call (set MADPO_TOKEN_FILE or --token-file)")
        if not hmac.compare_digest(given.removeprefix("Bearer ").encode(), self._token.encode()):
            raise errors.UnauthenticatedError("wrong bearer token (the server's token file holds the right one)")

    def record(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """Count one finished call."""
        self._metrics.calls.labels(method=method, code=code.name).inc()
        self._metrics.duration.labels(method=method).observe(duration_s)


class _Call:
    """One call: binds the request id, authenticates, and turns a raised error into a status."""

    def __init__(self, interceptor: CallInterceptor, method: str, metadata: dict[str, Any], context: Any) -> None:
        self._interceptor, self._method, self._metadata, self._context = interceptor, method, metadata, context
        self._request_id = str(metadata.get(REQUEST_ID_KEY) or uuid.uuid4().hex)[:64]
        self._start = time.monotonic()

    async def __aenter__(self) -> None:
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        try:
            self._interceptor.authenticate(self._method, self._metadata)
        except errors.MadpoError as error:
            await self._abort(error)
        # For callers whose token was checked; health answers anybody.
        if not self._method.startswith(_OPEN_PREFIXES):
            self._context.set_trailing_metadata(((VERSION_KEY, _VERSION), (TIME_KEY, f"{time.time():.6f}")))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> bool:
        if error is None:
            self._record(grpc.StatusCode.OK)
            return False
        if isinstance(error, errors.MadpoError):
            if isinstance(error, errors.InternalError):
                logger.error("call failed", exc_info=error, extra={"method": self._method})
            await self._abort(error)
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            self._record(grpc.StatusCode.CANCELLED)
            return False
        logger.error("call failed", exc_info=error, extra={"method": self._method})
        await self._abort(errors.InternalError(str(error)))
        return False

    async def _abort(self, error: errors.MadpoError) -> None:
        code, message, trailers = to_status(error, request_id=self._request_id)
        self._record(code)
        await self._context.abort(code, message, trailers)

    def _record(self, code: grpc.StatusCode) -> None:
        duration_s = time.monotonic() - self._start
        self._interceptor.record(self._method, code, duration_s)
        logger.debug("call", extra={"method": self._method, "code": code.name, "duration_s": round(duration_s, 4)})
