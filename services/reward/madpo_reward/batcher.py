"""Turns many small requests into batches, and bounds how much may wait.

The oldest waiting unit decides the next batch; units of the same model and shape ride along. One thread runs the
batches. Units of a request whose caller has gone leave the queue before they cost anything.
"""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import Gauge

from madpo.errors import InternalError, OverloadedError
from madpo_reward.metrics import RewardMetrics

_SHORTEST_HINT_S, _LONGEST_HINT_S = 0.05, 5.0
_RATE_SMOOTHING = 0.2

Text = TypeVar("Text")


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What may be one batch: up to `positions` of them, in rows of `width` that are always filled up, or unpadded."""

    width: int | None
    positions: int


@dataclass(frozen=True, slots=True)
class Unit(Generic[Text]):
    """Texts of one request that are computed together.

    Attributes:
        places: Of the texts in the request.
        texts: What the model is given.
        shape: Units of the same shape share batches.
        tokens: That go through the model, each once.
        positions: Room it takes in a batch: tokens and padding.
    """

    places: tuple[int, ...]
    texts: tuple[Text, ...] = field(repr=False)
    shape: BatchShape
    tokens: int
    positions: int


class Model(Protocol[Text]):
    """What the batcher needs of a scorer; compared by identity."""

    def forward(self, units: Sequence[Unit[Text]]) -> Sequence[Sequence[float]]:
        """Rewards of each unit's texts; the units have one shape and fit into one batch. Blocking."""
        ...


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Rewards in the order asked for, and where the time went."""

    rewards: Sequence[float]
    queue_s: float
    forward_s: float


@dataclass(slots=True, eq=False)
class _Request:
    done: asyncio.Future[None]
    rewards: list[float]
    missing: int
    forward_s: float = 0.0

    def answer(self, places: Sequence[int], rewards: Sequence[float]) -> None:
        for place, reward in zip(places, rewards, strict=True):
            self.rewards[place] = reward
        self.missing -= len(places)
        if self.missing == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Item:
    request: _Request
    unit: Unit[Any]


_Key = tuple[Model[Any], BatchShape]
_Number = tuple[int, int]
"""Of a request by its arrival, and of a unit in it."""


class Admission:
    """The door: bounds the tokens of requests let in and not yet answered.

    Args:
        max_tokens: The bound.
        gauge: Where the tokens inside are shown.
    """

    def __init__(self, max_tokens: int, *, gauge: Gauge) -> None:
        self._max_tokens, self._gauge = max_tokens, gauge
        self._tokens = 0
        self._tokens_per_s = 1000.0  # a guess until batches have run

    @contextmanager
    def admit(self, tokens: int) -> Iterator["Ticket"]:
        """Hold room for a request until the block ends.

        Args:
            tokens: An estimate; correct it with `Ticket.resize` once the texts are tokenized.

        Raises:
            OverloadedError: The queue is full (with a retry hint), or can never hold this request (without).
        """
        ticket = Ticket(self)
        try:
            ticket.resize(tokens)
            yield ticket
        finally:
            self.take(-ticket.tokens)

    def take(self, tokens: int) -> None:
        """Hold more, or fewer, tokens. Raises OverloadedError with a hint when there is no room."""
        total = self._tokens + tokens
        if tokens > 0 and total > self._max_tokens:
            wait_s = (total - self._max_tokens) / self._tokens_per_s
            raise OverloadedError(
                f"the queue holds {self._tokens} of at most {self._max_tokens} tokens, no room for {tokens} more",
                retry_after_s=min(max(wait_s, _SHORTEST_HINT_S), _LONGEST_HINT_S),
            )
        self._tokens = total
        self._gauge.set(total)

    def check_size(self, tokens: int) -> None:
        """Raises OverloadedError without a hint for a request that can never be let in."""
        if tokens > self._max_tokens:
            raise OverloadedError(
                f"the request has about {tokens} tokens and the whole queue holds {self._max_tokens}: send fewer pairs"
                " at once (or raise MADPO_REWARD_MAX_QUEUE_TOKENS)"
            )

    def observe_rate(self, tokens: int, duration_s: float) -> None:
        """Learn how fast the queue drains; retry hints come from it."""
        self._tokens_per_s += _RATE_SMOOTHING * (tokens / max(duration_s, 1e-6) - self._tokens_per_s)


class Ticket:
    """Room held by one request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.tokens = 0

    def resize(self, tokens: int) -> None:
        """Hold room for `tokens` instead. Raises OverloadedError as `Admission.admit` does."""
        self._admission.check_size(tokens)
        self._admission.take(tokens - self.tokens)
        self.tokens = tokens


class Batcher:
    """Queue and batch former of one device. Used from one event loop.

    Args:
        admission: Told how fast batches go.
        metrics: Where batches are counted.
    """

    def __init__(self, *, admission: Admission, metrics: RewardMetrics) -> None:
        self._admission, self._metrics = admission, metrics
        self._queues: dict[_Key, OrderedDict[_Number, _Item]] = {}
        self._arrivals = itertools.count()
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run batches."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop after the batch in work; callers are gone by now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._device.shutdown, cancel_futures=True)

    def arrive(self) -> int:
        """A place in the queue for a request whose units are still to be made."""
        return next(self._arrivals)

    async def score(
        self, model: Model[Text], units: Sequence[Unit[Text]], *, arrival: int | None = None
    ) -> BatchScores:
        """Score the units of a request; cancelling the caller takes them out of the queue.

        Args:
            model: What scores them.
            units: All of the request.
            arrival: From `arrive`; None for a request that arrives now.
        """
        start = time.monotonic()
        arrival = self.arrive() if arrival is None else arrival
        texts = sum(len(unit.places) for unit in units)
        request = _Request(asyncio.get_running_loop().create_future(), [0.0] * texts, missing=texts)
        places: list[tuple[_Key, _Number]] = []
        for place, unit in enumerate(units):
            key, number = (model, unit.shape), (arrival, place)
            self._enqueue(key, number, _Item(request, unit))
            places.append((key, number))
        self._arrived.set()
        try:
            await request.done
        finally:
            for key, number in places:
                self._discard(key, number)
        queue_s = max(0.0, time.monotonic() - start - request.forward_s)
        self._metrics.duration.labels(phase="queue").observe(queue_s)
        return BatchScores(request.rewards, queue_s, request.forward_s)

    def _enqueue(self, key: _Key, number: _Number, item: _Item) -> None:
        queue = self._queues.setdefault(key, OrderedDict())
        is_overtaken = bool(queue) and number < next(reversed(queue))
        queue[number] = item
        if is_overtaken:  # by a request that came later and was tokenized sooner
            self._queues[key] = OrderedDict(sorted(queue.items(), key=lambda entry: entry[0]))

    def _discard(self, key: _Key, number: _Number) -> None:
        queue = self._queues.get(key)
        if queue is not None:
            queue.pop(number, None)
            if not queue:
                # An empty queue would keep the model it belongs to in memory.
                del self._queues[key]

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            while self._queues:
                await self._run_oldest()
            self._arrived.clear()

    async def _run_oldest(self) -> None:
        model, shape = min(self._queues, key=lambda key: next(iter(self._queues[key])))
        batch = self._take_batch((model, shape))
        units = [item.unit for item in batch]
        start = time.monotonic()
        try:
            rewards = await asyncio.get_running_loop().run_in_executor(self._device, model.forward, units)
            if [len(of_unit) for of_unit in rewards] != [len(unit.places) for unit in units]:
                raise InternalError("the model did not answer as many rewards as it was given texts")
            self._observe(units, shape, time.monotonic() - start)
            for request in {id(item.request): item.request for item in batch}.values():
                request.forward_s += time.monotonic() - start
            for item, of_unit in zip(batch, rewards, strict=True):
                item.request.answer(item.unit.places, of_unit)
        except Exception as error:  # whatever went wrong belongs to these callers; the queue must outlive it
            for item in batch:
                item.request.fail(error)

    def _take_batch(self, key: _Key) -> list[_Item]:
        queue = self._queues[key]
        count = len(one_batch(item.unit for item in queue.values()))
        batch = list(itertools.islice(queue.items(), count))
        for number, _ in batch:
            self._discard(key, number)
        return [item for _, item in batch]

    def _observe(self, units: Sequence[Unit[Any]], shape: BatchShape, duration_s: float) -> None:
        taken = sum(unit.positions for unit in units)
        tokens = sum(unit.tokens for unit in units)
        self._admission.observe_rate(taken, duration_s)
        self._metrics.duration.labels(phase="forward").observe(duration_s)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_responses.observe(sum(len(unit.places) for unit in units))
        self._metrics.padding_tokens.inc((taken if shape.width is None else shape.positions) - tokens)


def one_batch(units: Iterable[Unit[Text]]) -> list[Unit[Text]]:
    """The first of these units, all of one shape, that fit into one batch; one at least."""
    batch: list[Unit[Text]] = []
    taken = 0
    for unit in units:
        taken += unit.positions
        if batch and taken > unit.shape.positions:
            break
        batch.append(unit)
    return batch
