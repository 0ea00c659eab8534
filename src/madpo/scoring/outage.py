"""Calls to a neighbour that may be away for a while."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from madpo.errors import DeadlineExceededError, FailedPreconditionError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

OUTAGE = (UnavailableError, OverloadedError, DeadlineExceededError)
"""What an outage looks like to a caller."""

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 10.0


async def call_until_answered(call: Callable[[], Awaitable[T]], *, budget_s: float, neighbour: str, advice: str) -> T:
    """Repeat a call while its neighbour is away.

    Args:
        call: Idempotent.
        budget_s: How long it may be away.
        neighbour: Who is called, for the log and the error: `a scorer`.
        advice: What to do when the budget is used up.

    Raises:
        FailedPreconditionError: No answer came within the budget. Errors that are no outage go through at once.
    """
    give_up = time.monotonic() + budget_s
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return await call()
        except OUTAGE as error:
            if time.monotonic() > give_up:
                raise FailedPreconditionError(
                    f"{neighbour} gave no answer for {budget_s:.0f} s: {error} ({advice})"
                ) from error
            logger.warning("waiting for %s", neighbour, extra={"error": str(error)})
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
