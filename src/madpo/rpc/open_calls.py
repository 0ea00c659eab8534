"""Calls that go on: each is ended within seconds once its caller may no longer be there, however silent it is."""

import asyncio
import logging
import time
from collections.abc import Callable

from madpo.errors import MadpoError
from madpo.rpc.access import Access

logger = logging.getLogger(__name__)

_CANCEL_AGAIN_S = 60.0
"""A cancellation may be lost on its way; one that is not takes its time where files are in use."""


class OpenCall:
    """One call, run by the current task.

    Args:
        check: Raises a MadpoError once it may not go on.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check, self._task = check, asyncio.current_task()
        self._cancelled_s = float("-inf")
        self.ended_by: MadpoError | None = None
        """Why it was cancelled here, and not by its client."""

    def check_again(self) -> None:
        """Cancel it if it may not go on."""
        try:
            self._check()
        except MadpoError as error:
            self.ended_by, now_s = error, time.monotonic()
            if self._task is not None and now_s - self._cancelled_s > _CANCEL_AGAIN_S:
                self._cancelled_s = now_s
                self._task.cancel()


class OpenCalls:
    """The calls of one server, looked at again every `access.recheck_s` seconds while there are any."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._calls: set[OpenCall] = set()
        self._looking: asyncio.Task[None] | None = None

    def add(self, check: Callable[[], None]) -> OpenCall:
        """The current task's call, until it is removed."""
        call = OpenCall(check)
        if self._access.recheck_s is not None:
            self._calls.add(call)
            if self._looking is None:
                self._looking = asyncio.create_task(self._look(self._access.recheck_s))
        return call

    def remove(self, call: OpenCall) -> None:
        """It is over, or has begun to end."""
        self._calls.discard(call)

    async def _look(self, every_s: float) -> None:
        try:
            while self._calls:
                await asyncio.sleep(every_s)
                try:
                    await self._access.recheck()
                except Exception:
                    logger.exception("whether calls may go on is not known, trying again")
                for call in list(self._calls):
                    try:
                        call.check_again()
                    except Exception:
                        logger.exception("whether a call may go on is not known, trying again")
        finally:
            self._looking = None
