"""Work that nobody waits for: it is logged and done again, or it ends the process, but it never ends in silence.

A test refuses tasks and threads that are started otherwise, except where it says who waits for them.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn

from madpo.errors import InternalError, MadpoError

logger = logging.getLogger(__name__)


class EssentialTask:
    """A task that a service cannot do without: should it end by itself, the process ends the way every service does.

    Args:
        work: The task; begins at once.
        name: What it is, for logs and errors: `the worker of queue train`.
    """

    def __init__(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        self._name = name
        self._may_end = self._ended_by_itself = False
        self._task = asyncio.create_task(work, name=name)
        self._task.add_done_callback(self._end_process)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not self._task.done()

    async def end(self, ask: Callable[[], object] | None = None) -> None:
        """Have it end, and wait until it has.

        Args:
            ask: Asks it to; None cancels it.

        Raises:
            InternalError: It had ended by itself; any exception of it likewise.
        """
        self._may_end = True
        (ask or self._task.cancel)()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error
        if self._ended_by_itself:
            raise InternalError(f"{self._name} ended without being asked to")

    @staticmethod
    async def end_all(tasks: Sequence["EssentialTask"], ask: Callable[[], object]) -> None:
        """Have several end that are asked by one and the same call: none of them may take the others by surprise.

        Raises:
            InternalError: See `end`; of the first of them.
        """
        for task in tasks:
            task._may_end = True
        for task in tasks:
            await task.end(ask)

    def _end_process(self, task: asyncio.Task[None]) -> None:
        if self._may_end:
            return
        self._ended_by_itself = True
        error = None if task.cancelled() else task.exception()
        logger.critical("%s has ended; the process ends", self._name, exc_info=error)
        # The way every service ends; `end` then raises what it died of, so the exit code tells.
        signal.raise_signal(signal.SIGTERM)


async def repeat(*works: Callable[[], Awaitable[object]], every_s: float, stop: asyncio.Event, name: str) -> None:
    """Do works one after another, every so often, until `stop` is set.

    What one of them raises is logged; the others are done all the same, and it is done again the next time.

    Args:
        works: What to do.
        every_s: The pause before each round, in seconds.
        stop: Ends it, between two works.
        name: For the log: `housekeeping`.
    """
    while not await _set_within(stop, every_s):
        for work in works:
            if stop.is_set():
                return
            try:
                await work()
            except MadpoError as error:
                logger.warning("%s failed, trying again", name, extra={"error": str(error)})
            except Exception:
                logger.exception("%s failed, trying again", name)


def exit_after(wait: Callable[[], object], *, name: str, exit_code: int) -> None:
    """Exit the process, from a daemon thread, as soon as something has happened, or cannot be waited for."""

    def run() -> NoReturn:
        try:
            wait()
        except BaseException:
            logger.critical("%s failed; the process ends", name, exc_info=True)
        os._exit(exit_code)

    threading.Thread(target=run, name=name, daemon=True).start()


async def _set_within(event: asyncio.Event, span_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(span_s):
            await event.wait()
    return event.is_set()
