"""What happens around every call: request id, access, log line, metrics, errors to status codes, audit record."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from madpo import errors
from madpo.rpc.access import Access, bind_caller, subjects_of
from madpo.rpc.channel import TIME_KEY, VERSION_KEY
from madpo.rpc.open_calls import OpenCall, OpenCalls
from madpo.rpc.status import to_status
from madpo.telemetry.metrics import RpcMetrics
from madpo.types import AuditRecord, Caller

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
_OPEN_PREFIXES = ("/grpc.health.v1.Health/",)
_VERSION = version("madpo")


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every handler of a server.

    Args:
        access: Who may call what, health checks excepted, and what is noted of it.
        metrics: Where calls are counted.
    """

    def __init__(self, *, access: Access, metrics: RpcMetrics) -> None:
        self.access = access
        self.open_calls = OpenCalls(access)
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
                async with _Call(self, method, metadata, context) as call:
                    request = call.received(request)
                    async for response in behavior(request, context):
                        call.check()
                        yield response

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(respond_stream, _decoding(handler.request_deserializer), handler.response_serializer)
        behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def respond(request: Any, context: Any) -> Any:
            async with _Call(self, method, metadata, context) as call:
                response = await behavior(call.received(request), context)
                call.saw(response)
                return response

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(respond, _decoding(handler.request_deserializer), handler.response_serializer)

    def record(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """Count one finished call."""
        self._metrics.calls.labels(method=method, code=code.name).inc()
        self._metrics.duration.labels(method=method).observe(duration_s)


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Stands for a request that is none: what gRPC says by itself blames the server, and asks for no token."""

    reason: str


def _decoding(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A decoder that raises nothing."""
    if decode is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return decode(data)
        except Exception as error:
            return _Undecodable(str(error))

    return read


def _decoded(request: Message | _Undecodable) -> Message:
    if isinstance(request, _Undecodable):
        raise errors.InvalidArgumentError(
            f"the request cannot be decoded ({request.reason}): is it of this call, and of this contract?"
        )
    return request


class _ReceivedStream:
    """The messages of a call, decoded, whose sizes in bytes are told; what that raises ends the stream."""

    def __init__(self, messages: AsyncIterable[Message | _Undecodable], take: Callable[[int], None]) -> None:
        self._messages, self._take = aiter(messages), take

    def __aiter__(self) -> "_ReceivedStream":
        return self

    async def __anext__(self) -> Message:
        message = _decoded(await anext(self._messages))
        self._take(message.ByteSize())
        return message


class _Call:
    """One call: binds the request id, asks for access, turns a raised error into a status, and has itself noted."""

    def __init__(self, interceptor: CallInterceptor, method: str, metadata: dict[str, Any], context: Any) -> None:
        self._interceptor, self._method, self._metadata, self._context = interceptor, method, metadata, context
        self._request_id = str(metadata.get(REQUEST_ID_KEY) or uuid.uuid4().hex)[:64]
        self._start = time.monotonic()
        self._caller: Caller | None = None
        self._open: OpenCall | None = None
        self._seen: list[Message] = []

    def received(self, request: Any) -> Any:
        """The request, remembered for the record; of a stream one whose bytes are counted as they come.

        Raises:
            InvalidArgumentError: It could not be decoded.
        """
        if isinstance(request, (Message, _Undecodable)):
            self.saw(_decoded(request))
            return request
        caller, access = self._caller, self._interceptor.access
        return _ReceivedStream(
            request, partial(access.take_bytes, caller) if caller is not None else lambda count: None
        )

    def saw(self, message: Any) -> None:
        """Remember a request or an answer for the record."""
        if isinstance(message, Message):
            self._seen.append(message)

    def check(self) -> None:
        """End a stream whose caller may no longer be here."""
        if self._caller is not None:
            self._interceptor.access.check(self._caller, self._method)

    async def __aenter__(self) -> "_Call":
        structlog.contextvars.bind_contextvars(request_id=self._request_id)
        if self._method.startswith(_OPEN_PREFIXES):
            return self
        try:
            self._caller = await self._interceptor.access.identify(self._token())
            bind_caller(self._caller)
            self.check()
            self._open = self._interceptor.open_calls.add(self.check)
        except errors.MadpoError as error:
            await self._abort(error)
        # For callers whose token was checked; health answers anybody.
        self._context.set_trailing_metadata(((VERSION_KEY, _VERSION), (TIME_KEY, f"{time.time():.6f}")))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> bool:
        if self._open is not None:
            self._interceptor.open_calls.remove(self._open)
            if self._open.ended_by is not None and (error is None or isinstance(error, asyncio.CancelledError)):
                await self._abort(self._open.ended_by)
        if error is None:
            await self._record(grpc.StatusCode.OK)
            return False
        if isinstance(error, errors.MadpoError):
            if isinstance(error, errors.InternalError):
                logger.error("call failed", exc_info=error, extra={"method": self._method})
            await self._abort(error)
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            await self._record(grpc.StatusCode.CANCELLED)
            return False
        logger.error("call failed", exc_info=error, extra={"method": self._method})
        await self._abort(errors.InternalError(str(error)))
        return False

    def _token(self) -> str | None:
        given = str(self._metadata.get("authorization", ""))
        return given.removeprefix("Bearer ") if given.startswith("Bearer ") else None

    async def _abort(self, error: errors.MadpoError) -> None:
        code, message, trailers = to_status(error, request_id=self._request_id)
        await self._record(code)
        await self._context.abort(code, message, trailers)

    async def _record(self, code: grpc.StatusCode) -> None:
        duration_s = time.monotonic() - self._start
        self._interceptor.record(self._method, code, duration_s)
        logger.debug("call", extra={"method": self._method, "code": code.name, "duration_s": round(duration_s, 4)})
        if self._caller is not None and self._interceptor.access.is_noted(self._method):
            await self._interceptor.access.note(
                AuditRecord(
                    time=time.time(),
                    caller=self._caller.name,
                    role=self._caller.role,
                    method=self._method.removeprefix("/").removeprefix("madpo.v1."),
                    code=code.name,
                    subjects=subjects_of(*self._seen),
                    request_id=self._request_id,
                    peer=self._context.peer(),
                )
            )
