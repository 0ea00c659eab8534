"""Resident reward models: loaded once, bounded, never evicted in use."""

import asyncio
import threading
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, Gauge

from madpo.errors import InvalidArgumentError, NotFoundError, OverloadedError
from madpo_reward.registry import ModelRegistry


class Loader:
    """Loads a model that is its own name, and counts."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, model_id: str) -> str:
        self.loads[model_id] += 1
        assert self.gate.wait(timeout=10)
        if model_id == "unknown":
            raise NotFoundError("no model unknown")
        if model_id == "unfit":
            raise InvalidArgumentError("unfit has two labels")
        return model_id


@pytest.fixture
def loader() -> Loader:
    return Loader()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(loader: Loader, clock: Clock) -> ModelRegistry[str]:
    gauge = Gauge("models", "", registry=CollectorRegistry())
    return ModelRegistry(loader, max_resident=2, gauge=gauge, clock=clock)


async def use(registry: ModelRegistry[str], model_id: str) -> str:
    async with registry.use(model_id) as model:
        return model


async def test_first_requests_that_come_together_load_a_model_once(
    registry: ModelRegistry[str], loader: Loader
) -> None:
    assert await asyncio.gather(*[use(registry, "a") for _ in range(5)]) == ["a"] * 5
    assert loader.loads == {"a": 1}


async def test_the_model_unused_for_longest_makes_room(registry: ModelRegistry[str], loader: Loader) -> None:
    for model_id in ("a", "b", "a", "c", "a", "b"):
        await use(registry, model_id)

    assert loader.loads == {"a": 1, "b": 2, "c": 1}


async def test_a_model_in_use_is_never_evicted(registry: ModelRegistry[str], loader: Loader) -> None:
    async with registry.use("a"):
        await use(registry, "b")
        await use(registry, "c")
        async with registry.use("c"):
            with pytest.raises(OverloadedError) as refused:
                await use(registry, "d")
    await use(registry, "a")

    assert refused.value.retry_after_s is not None
    assert loader.loads == {"a": 1, "b": 1, "c": 1}


async def test_a_failed_load_is_tried_again_by_the_next_caller(registry: ModelRegistry[str], loader: Loader) -> None:
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await use(registry, "unknown")

    assert loader.loads == {"unknown": 2}


async def test_a_caller_that_gives_up_does_not_end_the_load_for_others(
    registry: ModelRegistry[str], loader: Loader
) -> None:
    loader.gate.clear()
    first, second = asyncio.create_task(use(registry, "a")), asyncio.create_task(use(registry, "a"))
    await asyncio.sleep(0)

    first.cancel()
    loader.gate.set()

    assert await second == "a"
    assert loader.loads == {"a": 1}


async def test_a_model_that_cannot_be_used_is_loaded_once_a_minute_and_takes_nobodys_place_meanwhile(
    registry: ModelRegistry[str], loader: Loader, clock: Clock
) -> None:
    for model_id in ("unfit", "a", "b", "unfit", "unfit"):
        if model_id == "unfit":
            with pytest.raises(InvalidArgumentError, match="two labels"):
                await use(registry, model_id)
        else:
            await use(registry, model_id)
    await use(registry, "a")
    assert loader.loads == {"unfit": 1, "a": 1, "b": 1}

    clock.now += 61
    with pytest.raises(InvalidArgumentError, match="two labels"):
        await use(registry, "unfit")
    assert loader.loads["unfit"] == 2


async def test_models_that_are_loaded_are_known_the_last_one_first(
    registry: ModelRegistry[str], loader: Loader
) -> None:
    for model_id in ("a", "b", "a"):
        await use(registry, model_id)
    assert registry.loaded() == ["a", "b"]

    loader.gate.clear()
    loading = asyncio.create_task(use(registry, "c"))
    await asyncio.sleep(0)
    assert registry.loaded() == ["a"]
    loader.gate.set()
    await loading


async def test_a_load_says_for_how_long_it_has_not_moved(
    registry: ModelRegistry[str], loader: Loader, clock: Clock
) -> None:
    assert registry.stalled() is None
    loader.gate.clear()
    held = asyncio.create_task(use(registry, "a"))
    async with asyncio.timeout(10):
        while registry.stalled() is None:
            await asyncio.sleep(0.01)
    clock.now += 50
    assert registry.stalled() == ("a", 50)
    registry.moved()
    clock.now += 7
    assert registry.stalled() == ("a", 7)

    loader.gate.set()
    assert await held == "a"
    assert registry.stalled() is None
    registry.moved()
    assert registry.stalled() is None


async def test_a_load_that_failed_is_not_taken_for_one_that_stalls(registry: ModelRegistry[str], clock: Clock) -> None:
    with pytest.raises(NotFoundError):
        async with registry.use("unknown"):
            pass
    clock.now += 1e6

    assert registry.stalled() is None
