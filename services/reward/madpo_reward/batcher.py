"""Turns many small requests into batches.

The oldest waiting unit decides the next batch; units of the same model and shape ride along. One thread runs the
batches; where a model says so, another one prepares the next meanwhile. A batch in which memory runs out is done again
in halves, where the model can take less at a time. Units of a request whose caller has gone leave the queue before they
cost anything.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from madpo.background import EssentialTask
from madpo.errors import InternalError, OverloadedError
from madpo_reward.metrics import RewardMetrics
from madpo_reward.waiting import WaitingLine

Text = TypeVar("Text")


class ShortOfMemoryError(OverloadedError):
    """Memory ran out in what was tried; less of it at a time may do."""


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


Rewards = Sequence[Sequence[float]]
"""Of each unit's texts."""


class Model(Protocol[Text]):
    """What the batcher needs of a scorer; compared by identity."""

    @property
    def prepares_ahead(self) -> bool:
        """A batch is formed and prepared while the former one is computed; else when the device is free."""
        ...

    def prepare(self, units: Sequence[Unit[Text]]) -> Callable[[], Rewards]:
        """What gives rewards of units that have one shape and fit into one batch. Both are blocking."""
        ...

    def shrink(self) -> bool:
        """Take half as much at a time from now on, since memory ran out; whether that can be."""
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


@dataclass(frozen=True, slots=True)
class _Batch:
    """Units that are computed together."""

    model: Model[Any]
    shape: BatchShape
    items: Sequence[_Item]

    @property
    def units(self) -> list[Unit[Any]]:
        return [item.unit for item in self.items]

    @property
    def requests(self) -> list[_Request]:
        return list({id(item.request): item.request for item in self.items}.values())

    def of(self, request: _Request) -> "_Batch":
        return replace(self, items=[item for item in self.items if item.request is request])

    def halves(self) -> "list[_Batch]":
        middle = len(self.items) // 2
        return [replace(self, items=items) for items in (self.items[:middle], self.items[middle:])]


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch that is on the device, or behind the one there."""

    batch: _Batch
    rewards: asyncio.Future[Rewards]
    start: float


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
        self._arrival: asyncio.Future[None] | None = None
        self._free_at = 0.0
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._task: EssentialTask | None = None

    def start(self) -> None:
        """Begin to run batches."""
        self._task = EssentialTask(self._run(), name="the forming of batches")

    async def stop(self) -> None:
        """Stop after the batch in work; callers are gone by now."""
        if self._task is not None:
            await self._task.end()
        for threads in (self._preparing, self._device):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)

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
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
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
        running: _Running | None = None
        while True:
            if not self._lines:
                await self._wait(*([running.rewards] if running else []))
                if running and not self._lines:
                    await self._settle(running)
                    running = None
                continue
            key = min(self._lines, key=lambda key: self._lines[key].next()[0])
            if running and not key[0].prepares_ahead:
                # What comes while the device is busy may ride along.
                await self._settle(running)
                running = None
                continue
            begun = await self._begin(_Batch(*key, self._take_batch(key)))
            if running:
                await self._settle(running)
            running = begun

    async def _wait(self, *others: asyncio.Future[Rewards]) -> None:
        """Until a request arrives, or one of the others is done."""
        self._arrival = asyncio.get_running_loop().create_future()
        either: set[asyncio.Future[Any]] = {self._arrival, *others}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _begin(self, batch: _Batch) -> _Running:
        """Prepare a batch, and have it computed behind the one on the device."""
        loop, start = asyncio.get_running_loop(), time.monotonic()
        model, units = batch.model, batch.units
        try:
            if model.prepares_ahead:
                work = await loop.run_in_executor(self._preparing, model.prepare, units)
                return _Running(batch, loop.run_in_executor(self._device, work), start)
            return _Running(batch, loop.run_in_executor(self._device, lambda: model.prepare(units)()), start)
        except Exception as error:
            failed: asyncio.Future[Rewards] = loop.create_future()
            failed.set_exception(error)
            return _Running(batch, failed, start)

    async def _settle(self, running: _Running) -> None:
        """Give a batch's callers its rewards, or do it again in parts."""
        batch = running.batch
        try:
            rewards = await running.rewards
            if [len(of_unit) for of_unit in rewards] != [len(unit.places) for unit in batch.units]:
                raise InternalError("the model did not answer as many rewards as it was given texts")
            self.scored += 1
            duration_s = time.monotonic() - max(running.start, self._free_at)
            self._observe(batch.units, batch.shape, duration_s)
            for request in batch.requests:
                request.forward_s += duration_s
            for item, of_unit in zip(batch.items, rewards, strict=True):
                item.request.answer(item.unit.places, of_unit)
        except Exception as error:  # whatever went wrong belongs to a caller; the queue must outlive it
            await self._do_again(batch, error)
        finally:
            self._free_at = time.monotonic()

    async def _do_again(self, batch: _Batch, error: Exception) -> None:
        requests = batch.requests
        if isinstance(error, ShortOfMemoryError) and len(batch.items) > 1 and batch.model.shrink():
            parts = batch.halves()
        elif len(requests) == 1:
            requests[0].fail(error)
            return
        else:
            # One may have spoiled it for all: each alone has the same scores, or an error of its own.
            parts = [batch.of(request) for request in requests]
        for part in parts:
            await self._settle(await self._begin(part))

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
