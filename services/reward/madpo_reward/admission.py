"""The door of the scorer: how much may be inside, in tokens, bytes and seconds of work, and when to come again.

A refusal costs a few additions whatever the size of queue and request: it is made before the request is looked into.
Whoever is refused is given a time of its own, one after the other at the pace of the work, so that a crowd does not
come back at once.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import Gauge

from madpo.errors import OverloadedError

_SHORTEST_HINT_S, _LONGEST_HINT_S = 0.05, 5.0
_GUESSED_TOKENS_PER_S = 1000.0
_WINDOW_S = 0.2
"""Of work that one measurement of the rate covers, at least."""
_MEMORY_S = 1.0
"""Seconds of work after which a measurement has lost all but 1/e of its weight."""
_ALWAYS_INSIDE = 2
"""Requests that are let in however slow the model is: one in work, and one that follows without a pause."""


class Admission:
    """Bounds requests let in and not yet answered. Used from one event loop.

    Args:
        max_tokens: Most tokens inside.
        max_bytes: Most bytes of requests inside: a long text counts in full here, though it is cut to few tokens.
        max_queue_s: Longest time that a request is let in to wait, by the rate of late.
        gauge: Where the tokens inside are shown.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        max_tokens: int,
        *,
        max_bytes: int,
        max_queue_s: float,
        gauge: Gauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_tokens, self._max_bytes, self._max_queue_s = max_tokens, max_bytes, max_queue_s
        self._gauge, self._clock = gauge, clock
        self._tokens = self._bytes = 0
        self._working, self._working_tokens = 0, 0
        self._rate = _Rate()
        self._worked_until = 0.0
        self._promised_until = -math.inf

    @contextmanager
    def admit(self, tokens: int, *, size_bytes: int = 0, time_left_s: float | None = None) -> Iterator["Ticket"]:
        """Hold room for a request until the block ends.

        Args:
            tokens: An estimate; correct it with `Ticket.resize` once the texts are tokenized.
            size_bytes: Of the request.
            time_left_s: Until its deadline; None for one that waits for ever.

        Raises:
            OverloadedError: There is no room, or no time, for now (with a retry hint); or the queue can never hold this
                request (without).
        """
        self._check_size(tokens, size_bytes)
        self._check_bytes(tokens, size_bytes)
        self._check_wait(tokens, time_left_s)
        ticket = Ticket(self)
        self._bytes += size_bytes
        try:
            ticket.resize(tokens)
            yield ticket
        finally:
            self._hold(ticket, 0)
            self._bytes -= size_bytes

    def resize(self, ticket: "Ticket", tokens: int) -> None:
        """See `Ticket.resize`."""
        self._check_size(tokens, 0)
        more = tokens - ticket.tokens
        if more > 0 and self._tokens + more > self._max_tokens:
            raise self._refusal(
                f"the queue holds {self._tokens} of at most {self._max_tokens} tokens, no room for {more} more",
                tokens,
                room_in_s=(self._tokens + more - self._max_tokens) / self._rate.tokens_per_s,
            )
        self._hold(ticket, tokens)

    @contextmanager
    def work(self, ticket: "Ticket") -> Iterator[None]:
        """See `Ticket.work`."""
        self._pass_time()
        self._working += 1
        self._working_tokens += ticket.tokens
        ticket.is_worked_on = True
        done = 0
        try:
            yield
            done = ticket.tokens
        finally:
            self._pass_time()
            self._working -= 1
            self._working_tokens -= ticket.tokens
            ticket.is_worked_on = False
            self._rate.done(done)

    def _pass_time(self) -> None:
        now = self._clock()
        if self._working:
            self._rate.worked(now - self._worked_until)
        self._worked_until = now

    def _hold(self, ticket: "Ticket", tokens: int) -> None:
        more = tokens - ticket.tokens
        self._tokens += more
        if ticket.is_worked_on:
            self._working_tokens += more
        ticket.tokens = tokens
        self._gauge.set(self._tokens)

    def _check_size(self, tokens: int, size_bytes: int) -> None:
        if tokens > self._max_tokens:
            raise OverloadedError(
                f"the request has about {tokens} tokens and the whole queue holds {self._max_tokens}: send fewer pairs"
                " at once (or raise MADPO_REWARD_MAX_QUEUE_TOKENS)"
            )
        if size_bytes > self._max_bytes:
            raise OverloadedError(
                f"the request has {size_bytes} bytes and the whole queue holds {self._max_bytes}: send fewer pairs at"
                " once (or raise MADPO_REWARD_MAX_QUEUE_BYTES)"
            )

    def _check_bytes(self, tokens: int, size_bytes: int) -> None:
        if self._bytes + size_bytes > self._max_bytes:
            raise self._refusal(
                f"the queue holds {self._bytes} of at most {self._max_bytes} bytes, no room for {size_bytes} more",
                tokens,
                # About what leaves with the tokens.
                room_in_s=self._tokens / self._rate.tokens_per_s * size_bytes / self._max_bytes,
            )

    def _check_wait(self, tokens: int, time_left_s: float | None) -> None:
        # What waits for its model to be loaded is no work yet: others are served meanwhile.
        if not self._rate.is_measured or not self._working:
            return
        wait_s = self._working_tokens / self._rate.tokens_per_s
        if self._working >= _ALWAYS_INSIDE and wait_s > self._max_queue_s:
            raise self._refusal(
                f"the queue holds {wait_s:.1f} s of work, at most {self._max_queue_s:g} s are let in",
                tokens,
                room_in_s=wait_s - self._max_queue_s,
            )
        needed_s = wait_s + tokens / self._rate.tokens_per_s
        if time_left_s is not None and needed_s > time_left_s:
            raise self._refusal(
                f"the answer would take {needed_s:.1f} s, the deadline passes in {time_left_s:.1f} s",
                tokens,
                room_in_s=needed_s - time_left_s,
            )

    def _refusal(self, what: str, tokens: int, *, room_in_s: float) -> OverloadedError:
        now = self._clock()
        turn = max(now + room_in_s, self._promised_until)
        self._promised_until = min(turn + tokens / self._rate.tokens_per_s, now + _LONGEST_HINT_S)
        return OverloadedError(what, retry_after_s=min(max(turn - now, _SHORTEST_HINT_S), _LONGEST_HINT_S))


class Ticket:
    """Room held by one request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.tokens = 0
        self.is_worked_on = False

    def resize(self, tokens: int) -> None:
        """Hold room for `tokens` instead. Raises OverloadedError as `Admission.admit` does."""
        self._admission.resize(self, tokens)

    def work(self) -> AbstractContextManager[None]:
        """Around the work on the request, which is none while its model loads: the rate is measured here."""
        return self._admission.work(self)


class _Rate:
    """Tokens answered per second in which there was work: what the whole way gives, not its fastest part."""

    def __init__(self) -> None:
        self.tokens_per_s = _GUESSED_TOKENS_PER_S
        self.is_measured = False
        self._tokens, self._worked_s = 0, 0.0

    def worked(self, duration_s: float) -> None:
        """Time went by with work inside."""
        self._worked_s += duration_s

    def done(self, tokens: int) -> None:
        """A request was answered, or, with 0 tokens, was not."""
        self._tokens += tokens
        if self._worked_s < _WINDOW_S or not self._tokens:
            return
        measured = self._tokens / self._worked_s
        weight = 1.0 if not self.is_measured else 1 - math.exp(-self._worked_s / _MEMORY_S)
        self.tokens_per_s += weight * (measured - self.tokens_per_s)
        self.is_measured = True
        self._tokens, self._worked_s = 0, 0.0
