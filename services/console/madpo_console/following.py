"""Jobs that are looked at live: however many look at one, the gateway is asked once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from madpo.errors import MadpoError, OverloadedError, UnavailableError
from madpo.rpc.gateway.client import GatewayClient
from madpo.types import JobEvent
from madpo_console.callers import Asker

_EVENTS_KEPT = 2_000
_MOST_VIEWERS = 2_000
_SILENCE_S = 15.0
"""After so long without an event a viewer gets None, to show that the connection lives."""


class Following:
    """The watches of one console. Use inside one event loop."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._viewers = 0

    async def events(self, job_id: str, *, asking: Asker, cursor: str = "") -> AsyncIterator[JobEvent | None]:
        """Events behind the cursor, then live ones until the job is over; now and then None where nothing happens.

        Args:
            job_id: Whose.
            asking: The viewer. Whoever may look at one job may look at all, so one watch serves them all.
            cursor: Of the last event that was seen.

        Raises:
            OverloadedError: Too many look already.
            MadpoError: What ends the watch.
        """
        if self._viewers >= _MOST_VIEWERS:
            raise OverloadedError("too many look at jobs already: try again later", 10.0)
        followed = self._followed.get(job_id)
        if followed is None or followed.is_over:
            followed = self._followed[job_id] = _Followed(
                job_id, GatewayClient(asking.client.server, token=asking.token, tls=asking.client.tls)
            )
        self._viewers += 1
        followed.viewers += 1
        try:
            async for event in followed.after(cursor):
                yield event
        finally:
            self._viewers -= 1
            followed.viewers -= 1
            if not followed.viewers:
                if self._followed.get(job_id) is followed:
                    del self._followed[job_id]  # before anything is awaited: nobody joins it any more
                # A viewer who goes away is cancelled again and again, and could not wait for this.
                ending = asyncio.create_task(followed.end())
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    @property
    def watches(self) -> int:
        """How many jobs are watched at the gateway."""
        return len(self._followed)

    async def close(self) -> None:
        """End all watches."""
        for followed in list(self._followed.values()):
            await followed.end()
        await asyncio.gather(*self._ending)


class _Followed:
    """One job that somebody looks at."""

    def __init__(self, job_id: str, gateway: GatewayClient) -> None:
        self.viewers = 0
        self.is_over = False
        self._failure: MadpoError | None = None
        self._kept: deque[tuple[int, JobEvent]] = deque(maxlen=_EVENTS_KEPT)
        self._seen = 0
        self._news = asyncio.Event()
        self._gateway = gateway
        self._watch = asyncio.create_task(self._follow(job_id))  # awaited by `end`

    async def after(self, cursor: str) -> AsyncIterator[JobEvent | None]:
        """See `Following.events`."""
        seen, position = _place(cursor), 0
        while True:
            # The watch may drop the oldest meanwhile, which a slow viewer then misses.
            fresh = []
            for number, event in reversed(self._kept):
                if number < position:
                    break
                fresh.append(event)
            position = self._seen
            for event in reversed(fresh):
                if _place(event.cursor) > seen:
                    yield event
            if position < self._seen:
                continue
            if self._failure is not None:
                raise self._failure
            if self.is_over:
                return
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await self._news.wait()
            except TimeoutError:
                yield None

    async def end(self) -> None:
        """Stop watching."""
        self._watch.cancel()
        await asyncio.wait({self._watch})
        await self._gateway.close()

    async def _follow(self, job_id: str) -> None:
        try:
            async for event in self._gateway.watch_job(job_id):
                self._kept.append((self._seen, event))
                self._seen += 1
                self._wake()
        except MadpoError as error:
            self._failure = error
        except asyncio.CancelledError:
            self._failure = UnavailableError("the console stops looking at the job")
            raise
        finally:
            self.is_over = True
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news.clear()


def _place(cursor: str) -> tuple[int, ...]:
    """Where an event stands among those of its job; of what is no cursor, before the first."""
    parts = cursor.split("-")
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdecimal() for part in parts) else ()
