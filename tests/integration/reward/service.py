"""Replicas of the reward service over a store of tiny models, and what to ask them."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig

from madpo.rpc.reward_client import RewardClient
from madpo.types import PreferencePair

TOKEN = "test-token"
POSITIONS = 128
WORDS = ("the", "film", "was", "good", ".")
PAIRS = [
    PreferencePair(
        prompt=" ".join(itertools.islice(itertools.cycle(WORDS), n % 7)),
        chosen=" ".join(itertools.islice(itertools.cycle(WORDS), n % 3, 1 + n)),
        rejected=" ".join(itertools.islice(itertools.cycle(WORDS), 1 + (n * n) % 90)),
    )
    for n in range(24)
]


@dataclass(frozen=True)
class Models:
    """A store with the models under test."""

    url: str
    directory: Path
    tokenizer: Any
    good: str
    other: str
    two_labels: str
    headless: str
    causal: str
    nan_on_bad: str
    broken: str


def llama_config(tokenizer: Any, **options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )


@dataclass
class Replica:
    """A running server, its metrics and a client of it."""

    port: int
    registry: CollectorRegistry
    client: RewardClient

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def forwards(self) -> float:
        return self.count("madpo_reward_score_duration_seconds_count", phase="forward")


Start = Callable[..., Any]


def pair_rewards(scored: Sequence[Any]) -> dict[str, tuple[float, float]]:
    return {score.pair_id: (score.chosen_reward, score.rejected_reward) for score in scored}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.01)


def tokenizing_pids(model_id: str) -> list[int]:
    """Of the processes of ours that tokenize for a model."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if model_id.startswith(process.name()):
                found.append(process.pid)
    return found
