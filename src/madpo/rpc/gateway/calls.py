"""One channel to the gateway, and how its calls are made, bounded and explained.

Every wait is bounded: a unary call by `timeout_s`, each chunk of a transfer by the same, and the work the gateway does
after an upload's last byte by `commit_timeout_s`. Everything sent twice is harmless: uploads are named by their content
and jobs by their request id.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import grpc

from madpo.errors import DeadlineExceededError, FailedPreconditionError, MadpoError, UnavailableError
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.status import from_rpc_error
from madpo.rpc.tls import ClientTls, explain_handshake

T = TypeVar("T")

RETRY_DELAY_S = 0.5
_NO_CONNECTION = ("connection refused", "failed to connect", "dns resolution failed")
_HUNG_UP = ("failing; last error", "Socket closed")
"""A connection that the other side ended before it was of use."""


class GatewayCalls:
    """One channel to the gateway. Use inside one event loop; `close()` it at the end.

    Args:
        target: `host:port` of the gateway.
        token: Bearer token, or None for a gateway that asks for none.
        tls: What to trust; None talks in plain text.
        timeout_s: Longest wait for a unary call, and for each chunk of a transfer.
        commit_timeout_s: Longest wait for the gateway's own work: checking and storing an upload, an import.
        outage_s: How long a watch, or an upload of a dataset, keeps trying to reach a gateway that went away.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None,
        tls: ClientTls | None = None,
        timeout_s: float = 30.0,
        commit_timeout_s: float = 1800.0,
        outage_s: float = 120.0,
    ) -> None:
        self.target = target
        self.metadata = call_metadata(token)
        self.timeout_s, self.commit_timeout_s, self.outage_s = timeout_s, commit_timeout_s, outage_s
        self._tls = tls
        self.channel = open_channel(target, tls=tls)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self.channel.close(grace=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(
        self, method: Callable[..., Awaitable[Any]], request: object, *, timeout_s: float | None = None
    ) -> Any:
        """The answer of a unary call; its failure as an error of ours."""
        with self.domain_errors():
            return await method(request, metadata=self.metadata, timeout=timeout_s or self.timeout_s)

    async def persist(self, method: Callable[..., Awaitable[Any]], request: object, give_up_at: float) -> Any:
        """The answer of a gateway that is away for a while."""
        while True:
            await asyncio.sleep(RETRY_DELAY_S)
            try:
                return await self.call(method, request)
            except UnavailableError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise

    async def upload(self, call: Any, parts: AsyncGenerator[Any]) -> Any:
        """Send the parts, each within `timeout_s`; then wait for the gateway to store them."""
        ending = Ending(call)
        try:
            with self.domain_errors():
                try:
                    async for part in parts:
                        await asyncio.wait_for(call.write(part), self.timeout_s)
                    await call.done_writing()
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    pass  # The gateway has refused the rest already; the call's status says why.
                try:
                    return await asyncio.wait_for(call, self.commit_timeout_s)
                except grpc.aio.AioRpcError as error:
                    raise ending.unmasked(error) from error
        finally:
            call.cancel()
            await parts.aclose()

    async def received(self, call: Any, *, timeout_s: float | None = None) -> AsyncGenerator[Any]:
        """The messages of a download, each within `timeout_s`; by default the client's."""
        timeout_s = timeout_s or self.timeout_s
        try:
            with self.domain_errors():
                while (message := await asyncio.wait_for(call.read(), timeout_s)) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                    yield message
        finally:
            call.cancel()

    @contextmanager
    def domain_errors(self) -> Iterator[None]:
        """Turn what a failed call raises into an error of ours."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        except TimeoutError as error:
            if isinstance(error, MadpoError):
                raise
            raise DeadlineExceededError(f"the transfer with the gateway at {self.target} stalled") from error
        except asyncio.CancelledError as error:
            # A call that the gateway ended with CANCELLED looks like a cancelled task; only a real one passes.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise UnavailableError(f"the gateway at {self.target} ended the call") from error

    def _explained(self, error: grpc.aio.AioRpcError) -> MadpoError:
        domain = from_rpc_error(error)
        if error.trailing_metadata():
            return domain  # The gateway's own words.
        if isinstance(domain, DeadlineExceededError):
            return DeadlineExceededError(f"the gateway at {self.target} did not answer in time")
        if not isinstance(domain, UnavailableError):
            return domain
        if reason := explain_handshake(str(domain)):
            # Not UnavailableError: waiting and trying again cannot help.
            return FailedPreconditionError(f"no TLS with the gateway at {self.target}: {reason}")
        if all(sign in str(domain) for sign in _HUNG_UP):
            wants = (
                "lets in only clients with a certificate of its own (tls_cert)" if self._tls else "serves TLS (tls_ca)"
            )
            return UnavailableError(f"the gateway at {self.target} hangs up at once: it stops just now, or it {wants}")
        if any(sign in str(domain).lower() for sign in _NO_CONNECTION):
            return UnavailableError(f"no madpo gateway at {self.target}; start one with `madpo up` or set MADPO_SERVER")
        return UnavailableError(f"lost the gateway at {self.target}: {domain}")


class Ending:
    """The status that the server ended a call with.

    A write that fails because the server has ended the call replaces the status by an internal error of gRPC's own,
    before or after the server's status comes in (grpc/grpc#36066). So the status is noted as it is set first.
    """

    def __init__(self, call: Any) -> None:
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def unmasked(self, last: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The server's status, given the one the call had at the end."""
        return self._first if self._first is not None and last.details() == "Internal error from Core" else last

    def _note(self, call: Any) -> None:
        if self._first is None:
            initial, trailers = _known(call.initial_metadata()), _known(call.trailing_metadata())
            self._first = grpc.aio.AioRpcError(_known(call.code()), initial, trailers, _known(call.details()), None)


def _known(value: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        value.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a call that is done knows its status")
