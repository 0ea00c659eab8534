"""The check of rows on their way to the store, as seen from outside: how far it has come, and an end to it."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

from madpo.errors import UnavailableError
from madpo_gateway.spool import run_blocking, to_the_end

P = ParamSpec("P")
T = TypeVar("T")


class RowCheck:
    """One check. What runs it reads its rows through `watch`."""

    def __init__(self) -> None:
        self.rows = 0
        """Checked so far."""
        self._is_abandoned = False

    def watch(self, rows: Iterable[T]) -> Iterator[T]:
        """The rows, counted. Raises UnavailableError once nobody waits for them any more."""
        for self.rows, row in enumerate(rows, start=1):
            if self._is_abandoned:
                raise UnavailableError("the client stopped the upload; its bytes are kept for a while")
            yield row

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a worker thread; whoever is cancelled meanwhile, because the client has gone, ends the check."""
        work = asyncio.ensure_future(run_blocking(function, *args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._is_abandoned = True
            await to_the_end(work)
            raise
