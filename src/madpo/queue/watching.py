"""Watches of jobs: however many there are, one read of the server waits for what they wait for.

A watch reads what is behind its cursor by itself, page after page as its reader takes them. At the end of the stream it
joins the job's feed, which keeps the newest events for all that are there. One that falls behind the feed reads by
itself again: nothing is kept for it meanwhile, and it misses nothing.
"""

import asyncio
import copy
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from redis.asyncio import Redis

from madpo.errors import NotFoundError, UnavailableError
from madpo.queue.events import Position, final_event, format_cursor, parse_cursor, read_event
from madpo.queue.keys import Keys
from madpo.queue.records import job_from_hash
from madpo.types import JobEvent, JobState, StateChange

logger = logging.getLogger(__name__)

Page = tuple[Sequence[JobEvent], Position]
"""Events of a stream in order, and the position they have come to."""

_EVENTS_PER_PAGE = 500
_EVENTS_PER_READ = 5_000
"""Of all feeds together."""
_EVENTS_KEPT = 200
_BLOCK_S = 0.25
"""How long a feed that is joined while the read waits may go unread."""
_PAUSE_S = 0.05
"""Between reads: of busy streams, many events come with each."""
_LOOK_AGAIN_S = 30.0
"""After this long without an event a watch looks whether its job is still there, and not over."""
_LOOKING_AT_ONCE = 8
"""Watches that read by themselves: others wait their turn, so that calls find connections."""


class Watches:
    """All watches of one client of the server.

    Args:
        client: As the queue's.
        keys: Of the queue.
        answer: Awaits a command, and turns what it raises into errors of ours.
    """

    def __init__(self, client: Redis, keys: Keys, answer: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        self._client, self._keys, self._answer = client, keys, answer
        self._looking = asyncio.Semaphore(_LOOKING_AT_ONCE)
        self._feeds = _Feeds(self._read)

    async def watch(self, job_id: str, *, cursor: str, past_only: bool) -> AsyncIterator[JobEvent]:
        """See `JobQueue.watch`."""
        position = parse_cursor(cursor)
        while True:
            async with self._looking:
                # Read before the events: a job that is over now has all its events in the stream already.
                fields = await self._answer(self._client.hgetall(self._keys.job(job_id)))
                pages = await self._read({job_id: position}, count=_EVENTS_PER_PAGE)
            _notice_cancellation()
            if not fields:
                raise NotFoundError(f"there is no job {job_id}")
            if job_id in pages:
                events, position = pages[job_id]
                for event in events:
                    yield event
            elif JobState(fields["state"]).is_terminal:
                if parse_cursor(fields["final_cursor"]) > position:
                    yield final_event(job_from_hash(fields), cursor=fields["final_cursor"])
                return
            elif past_only:
                return
            else:
                with self._feeds.joined(job_id, position) as feed:
                    while page := await feed.after(position):
                        events, position = page
                        for event in events:
                            yield event
                        if any(map(_is_end, events)):  # over, unless it was resumed since
                            break

    async def close(self) -> None:
        """End all that still go on, with UnavailableError."""
        await self._feeds.close()

    async def _read(
        self, positions: Mapping[str, Position], *, count: int, block_s: float | None = None
    ) -> dict[str, Page]:
        """What is behind the positions in the streams of jobs; nothing of streams that have nothing there."""
        job_ids = {self._keys.events(job_id): job_id for job_id in positions}
        streams: dict[Any, Any] = {key: format_cursor(positions[job_id]) for key, job_id in job_ids.items()}
        block_ms = None if block_s is None else round(block_s * 1000)
        reply = await self._answer(self._client.xread(streams, count=count, block=block_ms))
        return {job_ids[key]: (_readable(entries), parse_cursor(entries[-1][0])) for key, entries in reply}


class _Feed:
    """The newest events of one job."""

    def __init__(self, position: Position) -> None:
        self.watchers = 0
        self._news = asyncio.Event()
        self._failure: Exception | None = None
        self.rewind(position)

    def rewind(self, position: Position) -> None:
        """Go on from here: nothing is kept, and what was read from later on will be read again."""
        self.start = self.end = position
        """All readable events behind `start` up to `end` are kept."""
        self._kept: deque[tuple[Position, JobEvent]] = deque()

    def add(self, events: Sequence[JobEvent], end: Position) -> None:
        """Pass events on, which come right behind `end`."""
        self._kept.extend((parse_cursor(event.cursor), event) for event in events)
        while len(self._kept) > _EVENTS_KEPT:
            self.start, _ = self._kept.popleft()
        self.end = end
        self._wake()

    def fail(self, error: Exception) -> None:
        """End every watch that is here."""
        self._failure = error
        self._wake()

    async def after(self, position: Position) -> Page | None:
        """What is behind a position, as soon as there is something; None when it is time to look at the stream."""
        if self.end <= position and self._failure is None:
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._news.wait()
            except TimeoutError:
                return None
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure  # one for each: a raised error keeps its traceback
        if not self.start <= position < self.end:
            return None
        fresh = [event for _, event in takewhile(lambda kept: kept[0] > position, reversed(self._kept))]
        return fresh[::-1], self.end

    def _wake(self) -> None:
        self._news.set()
        self._news.clear()


class _Feeds:
    """The feeds of all jobs that are watched, and the one task that reads for them."""

    def __init__(self, read: Callable[..., Awaitable[Mapping[str, Page]]]) -> None:
        self._read = read
        self._feeds: dict[str, _Feed] = {}
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    @contextmanager
    def joined(self, job_id: str, position: Position) -> Iterator[_Feed]:
        """The feed of a job, for a watch that has just found nothing behind its position."""
        if self._is_closed:
            raise UnavailableError("the queue is closed")
        feed = self._feeds.setdefault(job_id, _Feed(position))
        if position < feed.start:
            # More was dropped than it had missed, or the stream was lost and begun again.
            feed.rewind(position)
        feed.watchers += 1
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_on())
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers and self._feeds.get(job_id) is feed:
                del self._feeds[job_id]

    async def close(self) -> None:
        """Stop reading."""
        self._is_closed = True
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _read_on(self) -> None:
        """Until nobody watches. What ends it ends the watches: each begins again at its cursor."""
        failure: Exception = UnavailableError("the queue is closed")
        try:
            while self._feeds and not self._is_closed:
                ends = {job_id: feed.end for job_id, feed in self._feeds.items()}
                count = max(1, min(_EVENTS_PER_PAGE, _EVENTS_PER_READ // len(ends)))
                pages = await self._read(ends, count=count, block_s=_BLOCK_S)
                for job_id, (events, end) in pages.items():
                    feed = self._feeds.get(job_id)
                    if feed is not None and feed.end == ends[job_id]:
                        feed.add(events, end)
                await asyncio.sleep(_PAUSE_S)
        except Exception as error:
            failure = error
        finally:
            for feed in self._feeds.values():
                feed.fail(failure)
            self._feeds.clear()
            self._reading = None


def _readable(entries: Sequence[tuple[str, Mapping[str, str]]]) -> list[JobEvent]:
    """The events of a stream's entries; what is none, or of another version, is passed over for all watches alike."""
    events = []
    for cursor, fields in entries:
        try:
            events.append(read_event(cursor, fields))
        except (KeyError, ValueError):
            logger.warning("an event cannot be read", extra={"cursor": cursor, "type": fields.get("type")})
    return events


def _is_end(event: JobEvent) -> bool:
    return isinstance(event.event, StateChange) and event.event.state.is_terminal


def _notice_cancellation() -> None:
    """End a task that was asked to end and did not hear it.

    On Python 3.11 `asyncio.wait_for`, which the Redis client writes with, drops a cancellation that arrives just as the
    write is done.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
