"""Resident reward models: loaded once, bounded, never evicted in use."""

import asyncio
import threading
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, Gauge

from madpo.errors import NotFoundError, OverloadedError
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
        return model_id


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def registry(loader: Loader) -> ModelRegistry[str]:
    return ModelRegistry(loader, max_resident=2, gauge=Gauge("models", "", registry=CollectorRegistry()))


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
