"""Batches of the reward service: shapes, order, cancellation, and the door in front of them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from madpo.errors import OverloadedError
from madpo_reward.batcher import Admission, Batcher, BatchShape
from madpo_reward.metrics import RewardMetrics


class Recorder:
    """A model whose score is the sum of the ids; remembers its batches and can be held back."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[Sequence[int]], BatchShape]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def batch_shape(self, tokens: int) -> BatchShape:
        return BatchShape(width=8, rows=4) if tokens < 8 else BatchShape(width=32, rows=1)

    def forward(self, texts: Sequence[Sequence[int]], shape: BatchShape) -> list[float]:
        self.batches.append((list(texts), shape))
        self.entered.set()
        assert self.gate.wait(timeout=10)
        if any(-1 in text for text in texts):
            raise RuntimeError("poisoned")
        return [float(sum(text)) for text in texts]

    async def hold(self, batcher: Batcher) -> "asyncio.Task[object]":
        """Occupy the device until the gate opens."""
        self.gate.clear()
        self.entered.clear()
        task = asyncio.create_task(batcher.score(self, [[100]]))
        assert await asyncio.to_thread(self.entered.wait, 10)
        return task


@pytest.fixture
def metrics() -> RewardMetrics:
    return RewardMetrics(CollectorRegistry())


@pytest.fixture
def admission(metrics: RewardMetrics) -> Admission:
    return Admission(100, gauge=metrics.queue_tokens)


@pytest.fixture
async def batcher(admission: Admission, metrics: RewardMetrics) -> AsyncIterator[Batcher]:
    batcher = Batcher(admission=admission, metrics=metrics)
    batcher.start()
    yield batcher
    await batcher.stop()


def value(metric: Collector) -> float:
    return next(iter(metric.collect())).samples[0].value


async def test_rewards_come_back_in_the_order_asked_for_whatever_the_batches(batcher: Batcher) -> None:
    model = Recorder()

    scored = await batcher.score(model, [[1], [2] * 20, [3], [4], [5], [6], [7] * 9])

    assert scored.rewards == [1, 40, 3, 4, 5, 6, 63]
    assert [(len(texts), shape.width) for texts, shape in model.batches] == [(4, 8), (1, 32), (1, 8), (1, 32)]


async def test_texts_of_waiting_requests_share_a_batch_and_the_oldest_goes_first(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)
    requests = [asyncio.create_task(batcher.score(model, texts)) for texts in ([[9] * 10], [[1], [2]], [[3]])]
    await asyncio.sleep(0)

    model.gate.set()
    scored = await asyncio.gather(held, *requests)

    assert [scores.rewards for scores in scored[1:]] == [[90], [1, 2], [3]]
    assert [texts for texts, _ in model.batches[1:]] == [[[9] * 10], [[1], [2], [3]]]


async def test_a_request_whose_caller_has_gone_costs_no_forward_pass(batcher: Batcher) -> None:
    model = Recorder()
    held = await model.hold(batcher)
    gone = [asyncio.create_task(batcher.score(model, [[n], [n] * 10])) for n in range(50)]
    stays = asyncio.create_task(batcher.score(model, [[77]]))
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
        await batcher.score(model, [[-1]])

    assert (await batcher.score(model, [[5]])).rewards == [5]


async def test_models_do_not_share_batches(batcher: Batcher) -> None:
    first, second = Recorder(), Recorder()

    scored = await asyncio.gather(batcher.score(first, [[1]]), batcher.score(second, [[2]]))

    assert [scores.rewards for scores in scored] == [[1], [2]]
    assert len(first.batches) == len(second.batches) == 1


async def test_batches_are_counted_with_the_positions_that_held_no_token(
    batcher: Batcher, metrics: RewardMetrics
) -> None:
    await batcher.score(Recorder(), [[1], [2] * 10, [3] * 2])

    def total(metric: Collector) -> float:
        return next(sample.value for sample in next(iter(metric.collect())).samples if sample.name.endswith("_sum"))

    assert total(metrics.batch_responses) == 3
    assert total(metrics.batch_tokens) == 13
    assert value(metrics.padding_tokens) == (4 * 8 - 3) + (32 - 10)


async def test_timings_cover_the_wait_and_every_batch_of_the_request(batcher: Batcher, metrics: RewardMetrics) -> None:
    scored = await batcher.score(Recorder(), [[1], [2] * 10])

    phases = {
        sample.labels["phase"]: sample.value
        for sample in next(iter(metrics.duration.collect())).samples
        if sample.name.endswith("_count")
    }
    assert phases == {"forward": 2, "queue": 1, "tokenize": 0}
    assert scored.forward_s > 0
    assert scored.queue_s >= 0


def test_a_full_queue_refuses_at_once_with_a_hint_and_frees_what_is_answered(
    admission: Admission, metrics: RewardMetrics
) -> None:
    for _ in range(100):
        admission.observe_rate(tokens=1000, duration_s=10)
    with admission.admit(60):
        with pytest.raises(OverloadedError, match="60 of at most 100") as refused, admission.admit(60):
            pass
        with admission.admit(40):
            assert value(metrics.queue_tokens) == 100

    assert refused.value.retry_after_s == pytest.approx(20 / 100)
    assert value(metrics.queue_tokens) == 0


def test_a_request_larger_than_the_whole_queue_gets_no_hint(admission: Admission) -> None:
    with pytest.raises(OverloadedError, match="send fewer pairs") as refused, admission.admit(101):
        pass

    assert refused.value.retry_after_s is None


def test_the_real_token_count_replaces_the_guess(admission: Admission, metrics: RewardMetrics) -> None:
    with admission.admit(10) as ticket, admission.admit(50):
        ticket.resize(50)
        assert value(metrics.queue_tokens) == 100
        with pytest.raises(OverloadedError):
            ticket.resize(51)
        ticket.resize(5)
        assert value(metrics.queue_tokens) == 55

    assert value(metrics.queue_tokens) == 0
