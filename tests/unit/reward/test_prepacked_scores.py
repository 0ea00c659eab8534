"""The scorer's weights in oneDNN's layout, where a model is large enough for it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig

from madpo.models.prepacked import PrepackedLinear
from madpo_reward import scorer as module
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer
from tests.model_directories import save_directory


@pytest.fixture
def load(tmp_path: Path, make_toy_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(0)
    tokenizer = make_toy_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        num_labels=1,
    )
    save_directory(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / "model")

    def load(*, tiny: bool = False) -> Scorer:
        monkeypatch.setattr(module, "_TINY_WEIGHTS", 10**9 if tiny else 0)
        return load_scorer("model-1", tmp_path / "model", base_directory=None, config=ScorerConfig(batch_tokens=0))

    return load


def score(scorer: Scorer) -> float:
    (unit,) = scorer.plan([scorer.encode("good film", " a quiet surprise")])
    ((reward,),) = scorer.forward([unit])
    return reward


def test_a_model_that_is_not_tiny_is_laid_out_with_a_revision_of_its_own(load: Any) -> None:
    packed, plain = load(), load(tiny=True)

    laid_out = [
        any(isinstance(each, PrepackedLinear) for each in scorer._model.modules()) for scorer in (packed, plain)
    ]
    assert laid_out == [True, False]
    assert packed.layout.name == plain.layout.name
    assert packed.revision != plain.revision
    assert score(packed) == pytest.approx(score(plain), abs=1e-5)


def test_a_model_that_cannot_do_without_its_weights_is_scored_as_it_is(
    load: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(tiny=True)

    def reads_its_weight(self: PrepackedLinear, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T if inputs.dim() == 3 else forward(self, inputs)

    forward = PrepackedLinear.forward
    monkeypatch.setattr(PrepackedLinear, "forward", reads_its_weight)

    with caplog.at_level(logging.WARNING):
        scorer = load()

    assert "reward model scored without prepacked weights" in caplog.messages
    assert (scorer.revision, score(scorer)) == (plain.revision, score(plain))
