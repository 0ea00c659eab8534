"""The door of the scorer: how much may be inside, in tokens, bytes and seconds of work, and when to come again.

A refusal costs a few additions whatever the size of queue and request: it is made before the request is looked into.
Whoever is refused is given a time of its own, one after the other at the pace of the work, so that a crowd does not
come back at once. Room is one for all; seconds of work are counted model by model, since a slow model, or one whose
template hangs, says nothing about how long another's requests take.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import Gauge

from madpo.errors import OverloadedError
from madpo_reward.cache import LruCache

_SHORTEST_HINT_S, _LONGEST_HINT_S = 0.05, 5.0
_GUESSED_TOKENS_PER_S = 1000.0
_WINDOW_S = 0.2
"""Of work that one measurement of the rate covers, at least."""
_MEMORY_S = 1.0
"""Seconds of work after which a measurement has lost all but 1/e of its weight."""
_ALWAYS_INSIDE = 2
"""Requests that are let in however slow the model is: one in work, and one that follows without a pause."""
_LANES = 64
"""Models whose rates are known, those worked for last."""
_CAPACITY = (OverloadedError, TimeoutError, asyncio.CancelledError)
"""Ends of work that took a share of what the service can do; whatever else fails is the fault of the model or text."""


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
        self._lanes: LruCache[str, _Lane] = LruCache(_LANES)
        self._untried = _Lane()
        """Of all models that nothing was worked for yet: ids are the callers', and not all of them are models."""

    @contextmanager
    def admit(
        self, model_id: str, tokens: int, *, size_bytes: int = 0, time_left_s: float | None = None
    ) -> Iterator["Ticket"]:
        """Hold room for a request until the block ends.

        Args:
            model_id: That it is for; there need not be one.
            tokens: An estimate; correct it with `Ticket.resize` once the texts are tokenized.
            size_bytes: Of the request.
            time_left_s: Until its deadline; None for one that waits for ever.

        Raises:
            OverloadedError: There is no room, or no time, for now (with a retry hint); or the queue can never hold this
                request (without).
        """
        lane = self._lanes.get(model_id) or self._untried
        self._check_size(tokens, size_bytes)
        self._check_bytes(lane, tokens, size_bytes)
        self._check_wait(lane, tokens, time_left_s)
        ticket = Ticket(self, model_id)
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
            lane = self._lanes.get(ticket.model_id) or self._untried
            raise self._refusal(
                lane,
                f"the queue holds {self._tokens} of at most {self._max_tokens} tokens, no room for {more} more",
                tokens,
                room_in_s=(self._tokens + more - self._max_tokens) / lane.rate.tokens_per_s,
            )
        self._hold(ticket, tokens)

    @contextmanager
    def work(self, ticket: "Ticket") -> Iterator[None]:
        """See `Ticket.work`."""
        lane = self._lanes.get(ticket.model_id) or _Lane()
        self._lanes.put(ticket.model_id, lane)
        ticket.lane, begun_s = lane, lane.begin(ticket.tokens, self._clock())
        done = 0
        is_measured = True
        try:
            yield
            done = ticket.tokens
        except _CAPACITY:
            raise
        except Exception:
            is_measured = False
            raise
        finally:
            share_s = lane.end(ticket.tokens, self._clock()) - begun_s
            ticket.lane = None
            if is_measured:
                lane.rate.done(done, share_s)

    def _hold(self, ticket: "Ticket", tokens: int) -> None:
        more = tokens - ticket.tokens
        self._tokens += more
        if ticket.lane is not None:
            ticket.lane.tokens += more
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

    def _check_bytes(self, lane: "_Lane", tokens: int, size_bytes: int) -> None:
        if self._bytes + size_bytes > self._max_bytes:
            raise self._refusal(
                lane,
                f"the queue holds {self._bytes} of at most {self._max_bytes} bytes, no room for {size_bytes} more",
                tokens,
                # About what leaves with the tokens.
                room_in_s=self._tokens / lane.rate.tokens_per_s * size_bytes / self._max_bytes,
            )

    def _check_wait(self, lane: "_Lane", tokens: int, time_left_s: float | None) -> None:
        # What waits for its model to be loaded is no work yet.
        if not lane.rate.is_measured or not lane.working:
            return
        wait_s = lane.tokens / lane.rate.tokens_per_s
        if lane.working >= _ALWAYS_INSIDE and wait_s > self._max_queue_s:
            raise self._refusal(
                lane,
                f"the queue holds {wait_s:.1f} s of work, at most {self._max_queue_s:g} s are let in",
                tokens,
                room_in_s=wait_s - self._max_queue_s,
            )
        needed_s = wait_s + tokens / lane.rate.tokens_per_s
        if time_left_s is not None and needed_s > time_left_s:
            raise self._refusal(
                lane,
                f"the answer would take {needed_s:.1f} s, the deadline passes in {time_left_s:.1f} s",
                tokens,
                room_in_s=needed_s - time_left_s,
            )

    def _refusal(self, lane: "_Lane", what: str, tokens: int, *, room_in_s: float) -> OverloadedError:
        now = self._clock()
        turn = max(now + room_in_s, lane.promised_until)
        lane.promised_until = min(turn + tokens / lane.rate.tokens_per_s, now + _LONGEST_HINT_S)
        return OverloadedError(what, retry_after_s=min(max(turn - now, _SHORTEST_HINT_S), _LONGEST_HINT_S))


class Ticket:
    """Room held by one request."""

    def __init__(self, admission: Admission, model_id: str) -> None:
        self._admission = admission
        self.model_id = model_id
        self.tokens = 0
        self.lane: _Lane | None = None
        """That it is worked on in."""

    def resize(self, tokens: int) -> None:
        """Hold room for `tokens` instead. Raises OverloadedError as `Admission.admit` does."""
        self._admission.resize(self, tokens)

    def work(self) -> AbstractContextManager[None]:
        """Around the work on the request, which is none while its model loads: the rate is measured here.

        Work that fails by a fault of the model or the text is no measurement: a template that hangs would make
        everybody else's wait look as long.
        """
        return self._admission.work(self)


class _Lane:
    """Work on the requests of one model. What time goes by is shared by those that are in work."""

    def __init__(self) -> None:
        self.rate = _Rate()
        self.working, self.tokens = 0, 0
        self.promised_until = -math.inf
        self._share_s, self._until = 0.0, 0.0

    def begin(self, tokens: int, now: float) -> float:
        """A request is in work; the seconds that each has had a share of."""
        self._pass_time(now)
        self.working += 1
        self.tokens += tokens
        return self._share_s

    def end(self, tokens: int, now: float) -> float:
        """It is no more; the same seconds, by now."""
        self._pass_time(now)
        self.working -= 1
        self.tokens -= tokens
        return self._share_s

    def _pass_time(self, now: float) -> None:
        if self.working:
            self._share_s += (now - self._until) / self.working
        self._until = now


class _Rate:
    """Tokens answered per second in which there was work: what the whole way gives, not its fastest part."""

    def __init__(self) -> None:
        self.tokens_per_s = _GUESSED_TOKENS_PER_S
        self.is_measured = False
        self._tokens, self._worked_s = 0, 0.0

    def done(self, tokens: int, worked_s: float) -> None:
        """A request was answered, or, with 0 tokens, was not; its share of the seconds."""
        self._tokens += tokens
        self._worked_s += worked_s
        if self._worked_s < _WINDOW_S or not self._tokens:
            return
        measured = self._tokens / self._worked_s
        weight = 1.0 if not self.is_measured else 1 - math.exp(-self._worked_s / _MEMORY_S)
        self.tokens_per_s += weight * (measured - self.tokens_per_s)
        self.is_measured = True
        self._tokens, self._worked_s = 0, 0.0
