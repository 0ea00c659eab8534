"""The streams of one upload.

The last that came feeds it, since the connection of one before may have been cut without its knowing. Those before wait
for what becomes of it: whoever sends the same at the same time gets the same.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

from madpo.errors import MadpoError, UnavailableError

T = TypeVar("T")


class TakenOver(Exception):  # noqa: N818  # a way out, not a failure
    """Another stream feeds the upload, or it has ended: `Stream.outcome` tells what became of it."""


class _Feeding(Generic[T]):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.streams = 0
        self.last: Stream[T] | None = None
        self.outcome: asyncio.Future[T | MadpoError] = asyncio.get_running_loop().create_future()


class Stream(Generic[T]):
    """One stream, as the last of its upload until another comes."""

    def __init__(self, feeding: _Feeding[T]) -> None:
        if feeding.outcome.done():
            feeding.outcome = asyncio.get_running_loop().create_future()
        self._feeding, self._outcome = feeding, feeding.outcome
        feeding.last = self

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The upload for this stream alone. Raises TakenOver."""
        async with self._feeding.lock:
            if self._feeding.last is not self or self._outcome.done():
                raise TakenOver
            yield

    def end(self, outcome: T | MadpoError) -> None:
        """Tell all that wait what became of the upload."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def give_up(self) -> None:
        """Have those that wait send it themselves, if this stream was to do it."""
        if self._feeding.last is self:
            self.end(UnavailableError("another client that sent the same has stopped: go on with it"))

    async def outcome(self, messages: AsyncIterator[Any]) -> T:
        """What becomes of the upload; what the client sends meanwhile is taken in, and comes too late.

        Raises:
            MadpoError: What the stream that fed it came to, or UnavailableError where it was given up.
        """
        draining = asyncio.ensure_future(_drain(messages))
        try:
            outcome = await asyncio.shield(self._outcome)
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        if isinstance(outcome, MadpoError):
            raise outcome
        return outcome


class Streams(Generic[T]):
    """The streams of all uploads."""

    def __init__(self) -> None:
        self._feeding: dict[str, _Feeding[T]] = {}

    def __contains__(self, upload_id: str) -> bool:
        return upload_id in self._feeding

    @contextmanager
    def joined(self, upload_id: str) -> Iterator[Stream[T]]:
        """A new stream of an upload, the one that feeds it from now on."""
        feeding = self._feeding.setdefault(upload_id, _Feeding())
        feeding.streams += 1
        stream = Stream(feeding)
        try:
            yield stream
        finally:
            stream.give_up()
            feeding.streams -= 1
            if not feeding.streams:
                del self._feeding[upload_id]


async def _drain(messages: AsyncIterator[Any]) -> None:
    async for _ in messages:
        pass
