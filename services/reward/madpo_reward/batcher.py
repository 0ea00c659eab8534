"""Turns many small requests into batches.

The oldest waiting unit decides the next batch; units of the same model and shape ride along. One thread runs the
batches. Units of a request whose caller has gone leave the queue before they cost anything.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from madpo.background import EssentialTask
from madpo.errors import InternalError
from madpo_reward.metrics import RewardMetrics
from madpo_reward.waiting import WaitingLine

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


class Batcher:
    """Queue and batch former of one device. Used from one event loop.

    Args:
        metrics: Where batches are counted.

    Attributes:
        scored: Batches so far that gave scores.
    """

    def __init__(self, *, metrics: RewardMetrics) -> None:
        self._metrics = metrics
        self._lines: dict[_Key, WaitingLine[_Number, _Item]] = {}
        self._arrivals = itertools.count()
        self.scored = 0
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._task: EssentialTask | None = None

    def start(self) -> None:
        """Begin to run batches."""
        self._task = EssentialTask(self._run(), name="the forming of batches")

    async def stop(self) -> None:
        """Stop after the batch in work; callers are gone by now."""
        if self._task is not None:
            await self._task.end()
        await asyncio.to_thread(self._device.shutdown, cancel_futures=True)

    async def probe(self, work: Callable[[], object]) -> None:
        """Do something on the device behind the batch in work, to see that it can be done; raises what it does."""
        if self._task is None or not self._task.is_running:
            raise InternalError("no batches are formed")
        await asyncio.get_running_loop().run_in_executor(self._device, work)

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
            self._lines.setdefault(key, WaitingLine()).join(number, _Item(request, unit))
            places.append((key, number))
        self._arrived.set()
        try:
            await request.done
        finally:
            for key, number in places:
                self._leave(key, number)
        queue_s = max(0.0, time.monotonic() - start - request.forward_s)
        self._metrics.duration.labels(phase="queue").observe(queue_s)
        return BatchScores(request.rewards, queue_s, request.forward_s)

    def _leave(self, key: _Key, number: _Number) -> None:
        line = self._lines.get(key)
        if line is not None:
            line.leave(number)
            if not line:
                # An empty line would keep the model it belongs to in memory.
                del self._lines[key]

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            while self._lines:
                await self._run_oldest()
            self._arrived.clear()

    async def _run_oldest(self) -> None:
        key = min(self._lines, key=lambda key: self._lines[key].next()[0])
        await self._compute(key, self._take_batch(key))

    async def _compute(self, key: _Key, batch: list[_Item]) -> None:
        model, shape = key
        units = [item.unit for item in batch]
        requests = {id(item.request): item.request for item in batch}
        start = time.monotonic()
        try:
            rewards = await asyncio.get_running_loop().run_in_executor(self._device, model.forward, units)
            if [len(of_unit) for of_unit in rewards] != [len(unit.places) for unit in units]:
                raise InternalError("the model did not answer as many rewards as it was given texts")
            self.scored += 1
            self._observe(units, shape, time.monotonic() - start)
            for request in requests.values():
                request.forward_s += time.monotonic() - start
            for item, of_unit in zip(batch, rewards, strict=True):
                item.request.answer(item.unit.places, of_unit)
        except Exception as error:  # whatever went wrong belongs to a caller; the queue must outlive it
            if len(requests) == 1:
                batch[0].request.fail(error)
                return
            # One may have spoiled it for all: each alone has the same scores, or an error of its own.
            for request in requests.values():
                await self._compute(key, [item for item in batch if item.request is request])

    def _take_batch(self, key: _Key) -> list[_Item]:
        batch: list[_Item] = []
        taken = 0
        line = self._lines[key]
        while line:
            number, item = line.next()
            taken += item.unit.positions
            if batch and taken > item.unit.shape.positions:
                break
            batch.append(item)
            self._leave(key, number)
        return batch

    def _observe(self, units: Sequence[Unit[Any]], shape: BatchShape, duration_s: float) -> None:
        taken = sum(unit.positions for unit in units)
        tokens = sum(unit.tokens for unit in units)
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
