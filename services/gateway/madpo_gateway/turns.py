"""Long work takes turns, so that it never takes the threads and the processor from all the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from madpo.errors import OverloadedError

_RETRY_AFTER_S = 10.0


class Turns:
    """A bound on how much of one kind of work goes on at once.

    Args:
        what: The work, in the plural, for the error.
        at_once: How many have their turn.
        waiting: How many more may wait for theirs, in order.
    """

    def __init__(self, what: str, *, at_once: int, waiting: int) -> None:
        self._what, self._at_once, self._most_waiting = what, at_once, waiting
        self._free = asyncio.Semaphore(at_once)
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One's turn, as soon as there is one. Raises OverloadedError when too many wait."""
        if self._free.locked() and self._waiting >= self._most_waiting:
            raise OverloadedError(
                f"{self._at_once} {self._what} go on and {self._waiting} wait: try again in {_RETRY_AFTER_S:g} s",
                _RETRY_AFTER_S,
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class TurnsBySize:
    """Turns of which some are for small work: it never waits for what takes hours.

    Args:
        what: The work, in the plural, for the error.
        at_once: How many have their turn, of small work and of large.
        waiting: How many more of each may wait.
        large_bytes: What is large.
    """

    def __init__(self, what: str, *, at_once: int, waiting: int, large_bytes: int) -> None:
        self._large_bytes = large_bytes
        self._small = Turns(what, at_once=at_once, waiting=waiting)
        self._large = Turns(f"large {what}", at_once=at_once, waiting=waiting)

    def turn(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """One's turn, as of `Turns`."""
        return (self._large if size_bytes >= self._large_bytes else self._small).turn()
