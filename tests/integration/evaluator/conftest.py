"""What tests of evaluators share."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Message, PromptOnly
from madpo.v1.reward_service_pb2_grpc import add_RewardServiceServicer_to_server
from tests.integration.evaluator.evaluation_site import PAIRS, PROMPTS, Site, WordCounter
from tests.model_directories import save_directory

Make = Callable[..., Any]


@pytest.fixture
def scorer() -> WordCounter:
    """The reward service of the site."""
    return WordCounter()


@pytest.fixture
async def site(tmp_path: Path, scorer: WordCounter, make_toy_lm: Make, make_toy_tokenizer: Make) -> AsyncIterator[Site]:
    store = LocalStore(tmp_path / "store")
    models, datasets = ModelStore(store, tmp_path / "cache"), DatasetStore(store)
    ids = []
    for seed in (1, 2):
        save_directory(make_toy_lm(seed=seed), make_toy_tokenizer(), tmp_path / f"model{seed}")
        model, _ = models.publish(tmp_path / f"model{seed}", display_name="toy", kind="causal_lm")
        ids.append(model.model_id)
    prompts = [
        PromptOnly(prompt, row=row) for row, prompt in enumerate([*PROMPTS, (Message("user", "good"),)], start=1)
    ]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    prompt_set, _ = datasets.write(prompts, kind=DatasetKind.PROMPT, display_name="prompts", scratch=scratch)
    pair_set, _ = datasets.write(PAIRS, kind=DatasetKind.PREFERENCE, display_name="pairs", scratch=scratch)
    server = grpc.aio.server()
    add_RewardServiceServicer_to_server(scorer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Site(tmp_path, store, *ids, prompt_set.dataset_id, pair_set.dataset_id, f"127.0.0.1:{port}")
    await server.stop(None)
