"""Calls to a neighbour that may be away for a while."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from madpo.errors import DeadlineExceededError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

OUTAGE = (UnavailableError, OverloadedError, DeadlineExceededError)
"""What an outage looks like to a caller."""

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 10.0


async def call_until_answered(call: Callable[[], Awaitable[T]], *, budget_s: float, neighbour: str) -> T:
    """Repeat a call while its neighbour is away.

    Args:
        call: Idempotent.
        budget_s: How long it may be away, from the first failure on: time spent in a queue before is no outage.
        neighbour: Who is called, for the log: `a scorer`.

    Raises:
        UnavailableError, OverloadedError, DeadlineExceededError: The last failure, once the budget is used up. Errors
            that are no outage go through at once.
    """
    give_up: float | None = None
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return await call()
        except OUTAGE as error:
            give_up = give_up or time.monotonic() + budget_s
            if time.monotonic() >= give_up:
                raise
            logger.warning("waiting for %s", neighbour, extra={"error": str(error)})
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
