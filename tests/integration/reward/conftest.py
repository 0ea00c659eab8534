"""Tiny reward models, replicas that score with them, and a gate before their forward passes."""

import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo_reward.scorer import Scorer
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from tests.integration.reward.service import TOKEN, Models, Replica, Start, llama_config
from tests.model_directories import save_directory


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Models:
    root = tmp_path_factory.mktemp("reward")
    tokenizer = make_toy_tokenizer()
    store = ModelStore(LocalStore(root / "store"), root / "publisher")

    def publish(name: str, model: Any, *, kind: str = "reward", pretend: str | None = None) -> str:
        save_directory(model, tokenizer, root / name)
        if pretend is not None:
            path = root / name / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [pretend], "num_labels": 1}))
            with patch("madpo.storage.models.check_files"):  # as it was stored before uploads were looked at for it
                return store.publish(root / name, display_name=name, kind=kind)[0].model_id
        return store.publish(root / name, display_name=name, kind=kind)[0].model_id

    def reward_model(seed: int, labels: int = 1) -> Any:
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=labels))
        # The default initialisation is too flat for wrong sums to show in the last bits.
        torch.nn.init.normal_(model.score.weight)
        return model

    nan_on_bad = reward_model(2)
    nan_on_bad.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("bad")] = torch.nan
    broken = reward_model(3)
    broken.score.weight.data.fill_(torch.nan)
    causal = LlamaForCausalLM(llama_config(tokenizer))
    return Models(
        url=f"file://{root / 'store'}",
        directory=root / "good",
        tokenizer=tokenizer,
        good=publish("good", reward_model(0)),
        other=publish("other", reward_model(1)),
        two_labels=publish("two-labels", reward_model(1, labels=2)),
        headless=publish("headless", causal, pretend="LlamaForSequenceClassification"),
        causal=publish("causal", causal, kind="causal_lm"),
        nan_on_bad=publish("nan-on-bad", nan_on_bad),
        broken=publish("broken", broken),
    )


@pytest.fixture
def start(models: Models, tmp_path: Path) -> Start:
    """Starts a replica with its own cache directory, unpadded as for models of real size; options are settings."""
    numbers = itertools.count()

    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[Replica]:
        options = {"batch_tokens": 0, "cache": tmp_path / f"cache-{next(numbers)}"} | options
        settings = RewardSettings(store_url=models.url, token=TOKEN, grace_s=5, **options)
        registry = CollectorRegistry()
        service = RewardService(settings, registry)
        async with RunningServer(service, settings, token=TOKEN, registry=registry) as server:
            client = RewardClient(f"127.0.0.1:{server.port}", token=TOKEN, timeout_s=30)
            try:
                yield Replica(server.port, registry, client)
            finally:
                await client.close()

    return start


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Forward passes wait while it is cleared."""
    gate = threading.Event()
    gate.set()
    prepare = Scorer.prepare

    def gated(self: Scorer, units: Sequence[Any]) -> Callable[[], list[list[float]]]:
        compute = prepare(self, units)

        def held() -> list[list[float]]:
            assert gate.wait(timeout=30)
            return compute()

        return held

    monkeypatch.setattr(Scorer, "prepare", gated)
    yield gate
    gate.set()
