"""Batches of the reward service: shapes, order, cancellation."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from madpo.errors import FailedPreconditionError, InternalError, OverloadedError
from madpo_reward.batcher import Batcher, BatchShape, ShortOfMemoryError, Unit
from madpo_reward.metrics import RewardMetrics

Ids = Sequence[int]
SHORT, LONG = BatchShape(width=8, positions=32), BatchShape(width=32, positions=32)
UNPADDED = BatchShape(width=None, positions=20)


def padded(texts: Sequence[Ids]) -> list[Unit[Ids]]:
    """A unit for each text: in rows of 8, four to a batch, or alone in a row of 32."""
    return [
        Unit(
            (place,),
            (text,),
            shape=SHORT if len(text) < 8 else LONG,
            tokens=len(text),
            positions=8 if len(text) < 8 else 32,
        )
        for place, text in enumerate(texts)
    ]


class Recorder:
    """A model whose score is the sum of the ids; remembers its batches and can be held back."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[Ids], BatchShape]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    prepares_ahead = False

    def shrink(self) -> bool:
        return False

    def prepare(self, units: Sequence[Unit[Ids]]) -> Callable[[], list[list[float]]]:
        return partial(self.forward, units)

    def forward(self, units: Sequence[Unit[Ids]]) -> list[list[float]]:
        assert len({unit.shape for unit in units}) == 1
        self.batches.append(([text for unit in units for text in unit.texts], units[0].shape))
        self.entered.set()
        assert self.gate.wait(timeout=10)
        if any(-1 in text for unit in units for text in unit.texts):
            raise RuntimeError("poisoned")
        return [[float(sum(text)) for text in unit.texts] for unit in units]

    async def hold(self, batcher: Batcher) -> "asyncio.Task[object]":
        """Occupy the device until the gate opens."""
        self.gate.clear()
        self.entered.clear()
        task = asyncio.create_task(batcher.score(self, padded([[100]])))
        assert await asyncio.to_thread(self.entered.wait, 10)
        return task


@pytest.fixture
def metrics() -> RewardMetrics:
    return RewardMetrics(CollectorRegistry())


@pytest.fixture
async def batcher(metrics: RewardMetrics) -> AsyncIterator[Batcher]:
    batcher = Batcher(metrics=metrics)
    batcher.start()
    yield batcher
    await batcher.stop()


def value(metric: Collector) -> float:
    return next(iter(metric.collect())).samples[0].value


async def test_rewards_come_back_in_the_order_asked_for_whatever_the_batches(batcher: Batcher) -> None:
    model = Recorder()

    scored = await batcher.score(model, padded([[1], [2] * 20, [3], [4], [5], [6], [7] * 9]))

    assert scored.rewards == [1, 40, 3, 4, 5, 6, 63]
    assert [(len(texts), shape.width) for texts, shape in model.batches] == [(4, 8), (1, 32), (1, 8), (1, 32)]


async def test_texts_of_waiting_requests_share_a_batch_and_the_oldest_goes_first(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)
    requests = [asyncio.create_task(batcher.score(model, padded(texts))) for texts in ([[9] * 10], [[1], [2]], [[3]])]
    await asyncio.sleep(0)

    model.gate.set()
    scored = await asyncio.gather(held, *requests)

    assert [scores.rewards for scores in scored[1:]] == [[90], [1, 2], [3]]
    assert [texts for texts, _ in model.batches[1:]] == [[[9] * 10], [[1], [2], [3]]]


async def test_a_request_that_was_tokenized_late_goes_before_those_that_arrived_after_it(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)

    first = batcher.arrive()
    second = asyncio.create_task(batcher.score(model, padded([[index] for index in range(1, 6)])))
    await asyncio.sleep(0)
    late = asyncio.create_task(batcher.score(model, padded([[8], [9]]), arrival=first))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(held, second, late)

    assert [texts for texts, _ in model.batches] == [[[100]], [[8], [9], [1], [2]], [[3], [4], [5]]]
    assert late.result().rewards == [8, 9]


async def test_a_request_whose_caller_has_gone_costs_no_forward_pass(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)
    gone = [asyncio.create_task(batcher.score(model, padded([[n], [n] * 10]))) for n in range(50)]
    stays = asyncio.create_task(batcher.score(model, padded([[77]])))
    await asyncio.sleep(0)

    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    model.gate.set()
    await held

    assert (await stays).rewards == [77]
    assert [texts for texts, _ in model.batches] == [[[100]], [[77]]]


async def test_a_failing_batch_fails_its_callers_and_not_the_next(batcher: Batcher) -> None:
    model = Recorder()

    with pytest.raises(RuntimeError, match="poisoned"):
        await batcher.score(model, padded([[-1]]))

    assert (await batcher.score(model, padded([[5]]))).rewards == [5]


async def test_a_text_that_fails_is_told_to_who_asked_for_it_and_not_to_its_company(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)
    texts = ([[1], [2]], [[-1], [3]], [[4]])
    waiting = [asyncio.create_task(batcher.score(model, padded(each))) for each in texts]
    await asyncio.sleep(0)

    model.gate.set()
    await asyncio.wait([held, *waiting])

    assert waiting[0].result().rewards == [1, 2]
    with pytest.raises(RuntimeError, match="poisoned"):
        waiting[1].result()
    assert waiting[2].result().rewards == [4]
    assert [texts for texts, _ in model.batches[1:]] == [[[1], [2], [-1], [3]], [[1], [2]], [[-1], [3]], [[4]]]


async def test_models_do_not_share_batches(batcher: Batcher) -> None:
    first, second = Recorder(), Recorder()

    scored = await asyncio.gather(batcher.score(first, padded([[1]])), batcher.score(second, padded([[2]])))

    assert [scores.rewards for scores in scored] == [[1], [2]]
    assert len(first.batches) == len(second.batches) == 1


async def test_unpadded_units_share_a_batch_up_to_its_positions_and_answer_all_their_texts(
    batcher: Batcher, metrics: RewardMetrics
) -> None:
    model = Recorder()
    units = [
        Unit((0, 2), ([1], [3] * 8), shape=UNPADDED, tokens=9, positions=9),
        Unit((1,), ([2] * 11,), shape=UNPADDED, tokens=11, positions=11),
        Unit((3,), ([4] * 50,), shape=UNPADDED, tokens=50, positions=50),
        Unit((4,), ([5],), shape=UNPADDED, tokens=1, positions=1),
    ]

    scored = await batcher.score(model, units)

    assert scored.rewards == [1, 22, 24, 200, 5]
    assert [len(texts) for texts, _ in model.batches] == [3, 1, 1]
    assert value(metrics.padding_tokens) == 0


async def test_batches_are_counted_with_the_positions_that_held_no_token(
    batcher: Batcher, metrics: RewardMetrics
) -> None:
    await batcher.score(Recorder(), padded([[1], [2] * 10, [3] * 2]))

    def total(metric: Collector) -> float:
        return next(sample.value for sample in next(iter(metric.collect())).samples if sample.name.endswith("_sum"))

    assert total(metrics.batch_responses) == 3
    assert total(metrics.batch_tokens) == 13
    assert value(metrics.padding_tokens) == (4 * 8 - 3) + (32 - 10)


async def test_timings_cover_the_wait_and_every_batch_of_the_request(batcher: Batcher, metrics: RewardMetrics) -> None:
    scored = await batcher.score(Recorder(), padded([[1], [2] * 10]))

    phases = {
        sample.labels["phase"]: sample.value
        for sample in next(iter(metrics.duration.collect())).samples
        if sample.name.endswith("_count")
    }
    assert phases == {"forward": 2, "queue": 1, "tokenize": 0}
    assert scored.forward_s > 0
    assert scored.queue_s >= 0


@pytest.mark.timeout(30)
async def test_an_answer_that_does_not_fit_fails_its_callers_and_the_queue_goes_on(batcher: Batcher) -> None:
    class Forgetful(Recorder):
        def forward(self, units: Sequence[Unit[Ids]]) -> list[list[float]]:
            return super().forward(units)[1:]

    with pytest.raises(InternalError, match="as many rewards"):
        await batcher.score(Forgetful(), padded([[1], [2]]))

    assert list((await batcher.score(Recorder(), padded([[3]]))).rewards) == [3.0]


class Ahead(Recorder):
    """Prepares a batch while the former one is computed, and takes at most `most` positions at a time."""

    prepares_ahead = True

    def __init__(self, most: int = 1 << 30) -> None:
        super().__init__()
        self.most, self.shrunk = most, 0
        self.prepared: list[list[Ids]] = []
        self.second = threading.Event()

    def prepare(self, units: Sequence[Unit[Ids]]) -> Callable[[], list[list[float]]]:
        self.prepared.append([text for unit in units for text in unit.texts])
        if any(-2 in text for text in self.prepared[-1]):
            raise FailedPreconditionError("it cannot be laid out")
        if len(self.prepared) == 2:
            self.second.set()
        return partial(self.forward, units)

    def forward(self, units: Sequence[Unit[Ids]]) -> list[list[float]]:
        rewards = super().forward(units)
        if sum(unit.positions for unit in units) > self.most:
            raise ShortOfMemoryError("not enough memory", retry_after_s=1.0)
        return rewards

    def shrink(self) -> bool:
        self.shrunk += 1
        return True


def unpadded(texts: Sequence[Ids]) -> list[Unit[Ids]]:
    return [
        Unit((place,), (text,), shape=UNPADDED, tokens=len(text), positions=len(text))
        for place, text in enumerate(texts)
    ]


@pytest.mark.timeout(30)
async def test_the_next_batch_is_prepared_while_the_former_one_is_computed(batcher: Batcher) -> None:
    model = Ahead()
    first = await model.hold(batcher)

    second = asyncio.create_task(batcher.score(model, unpadded([[1], [2]])))
    assert await asyncio.to_thread(model.second.wait, 10)

    assert [text for text, _ in model.batches] == [[[100]]]  # what was prepared waits for the device
    assert model.prepared == [[[100]], [[1], [2]]]
    model.gate.set()
    assert list((await first).rewards) == [100.0]  # type: ignore[attr-defined]
    assert list((await second).rewards) == [1.0, 2.0]


@pytest.mark.timeout(30)
async def test_what_cannot_be_prepared_is_told_to_who_asked_for_it_and_not_to_its_company(batcher: Batcher) -> None:
    model = Ahead()
    first = await model.hold(batcher)
    good = asyncio.create_task(batcher.score(model, unpadded([[1]])))
    bad = asyncio.create_task(batcher.score(model, unpadded([[-2]])))
    await asyncio.sleep(0)
    model.gate.set()

    await first
    assert list((await good).rewards) == [1.0]
    with pytest.raises(FailedPreconditionError, match="cannot be laid out"):
        await bad


@pytest.mark.timeout(30)
async def test_a_batch_that_memory_runs_out_in_is_done_again_in_halves(batcher: Batcher) -> None:
    model = Ahead(most=5)

    scored = await batcher.score(model, unpadded([[place] * 2 for place in range(8)]))

    assert list(scored.rewards) == [2.0 * place for place in range(8)]
    assert [len(texts) for texts, _ in model.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert model.shrunk == 3


@pytest.mark.timeout(30)
async def test_a_text_that_memory_has_no_room_for_is_refused_for_now_and_its_company_is_not(batcher: Batcher) -> None:
    model = Ahead(most=8)
    first = await model.hold(batcher)
    large = asyncio.create_task(batcher.score(model, unpadded([[1] * 9])))
    small = asyncio.create_task(batcher.score(model, unpadded([[2], [3]])))
    await asyncio.sleep(0)
    model.gate.set()

    await first
    assert list((await small).rewards) == [2.0, 3.0]
    with pytest.raises(OverloadedError) as refused:
        await large
    assert refused.value.retry_after_s == 1.0


@pytest.mark.timeout(30)
async def test_a_model_that_cannot_take_less_is_asked_request_by_request(batcher: Batcher) -> None:
    model = Ahead(most=8)
    model.shrink = lambda: False  # type: ignore[method-assign]
    first = await model.hold(batcher)
    tasks = [asyncio.create_task(batcher.score(model, unpadded([[each] * 5]))) for each in (1, 2)]
    await asyncio.sleep(0)
    model.gate.set()

    await first
    assert [list((await task).rewards) for task in tasks] == [[5.0], [10.0]]
