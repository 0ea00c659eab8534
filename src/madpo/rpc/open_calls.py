"""Calls that go on: each is ended within seconds once its caller may no longer be there, however silent it is."""

import asyncio
import logging
from collections.abc import Callable

from madpo.errors import MadpoError
from madpo.rpc.access import Access

logger = logging.getLogger(__name__)


class OpenCall:
    """One call, run by the current task.

    Args:
        check: Raises a MadpoError once it may not go on.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check, self._task = check, asyncio.current_task()
        self.ended_by: MadpoError | None = None
        """Why it was cancelled here, and not by its client."""

    def check_again(self) -> None:
        """Cancel it if it may not go on; again where a cancellation was lost on its way."""
        try:
            self._check()
        except MadpoError as error:
            self.ended_by = error
            if self._task is not None:
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
                    call.check_again()
        finally:
            self._looking = None
