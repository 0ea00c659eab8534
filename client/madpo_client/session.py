"""Synchronous calls of the async gateway client.

One daemon thread runs one event loop for every client of the process: gRPC's asyncio poller belongs to the process, so
several loops would only steal each other's wake-ups.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.tls import ClientTls

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="madpo-client", daemon=True).start()
        return _loop


class Session:
    """A gateway client and the thread its calls run in. Thread-safe."""

    def __init__(self, server: str, *, token: str | None, tls: ClientTls | None, timeout_s: float) -> None:
        async def connect() -> GatewayClient:
            return GatewayClient(server, token=token, tls=tls, timeout_s=timeout_s)

        self.gateway = self.run(connect())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result. An interrupt cancels the call."""
        future = asyncio.run_coroutine_threadsafe(call, _background_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, events: AsyncGenerator[T], *, timeout_s: float | None = None) -> Iterator[T]:
        """The items of an async generator. Raises TimeoutError once `timeout_s` has passed in all."""

        async def bounded(deadline: float | None) -> T:
            async with asyncio.timeout_at(deadline):
                return await anext(events)

        deadline = None if timeout_s is None else _background_loop().time() + timeout_s
        try:
            while True:
                try:
                    yield self.run(bounded(deadline))
                except StopAsyncIteration:
                    return
        finally:
            self.let_run(_close(events))

    def let_run(self, closing: Coroutine[Any, Any, None]) -> None:
        """Not waited for: a generator may be finalised while the interpreter shuts down."""
        asyncio.run_coroutine_threadsafe(closing, _background_loop())

    def each(self, fetch: Callable[..., Coroutine[Any, Any, tuple[list[T], str]]]) -> Iterator[T]:
        """What a listing has, page after page as it is asked for."""
        items, token = self.run(fetch())
        while True:
            yield from items
            if not token:
                return
            items, token = self.run(fetch(page_token=token))

    def close(self) -> None:
        """Close the connection."""
        self.run(self.gateway.close())


async def _close(events: AsyncGenerator[Any]) -> None:
    await events.aclose()
