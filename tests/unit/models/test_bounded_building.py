"""Models are built within what their files can fill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
)

from madpo.errors import InvalidArgumentError
from madpo.models import bounded_building
from madpo.models.load import _load


def neo() -> PreTrainedModel:
    layers = [[["global", "local"], 1]]
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=64, hidden_size=32, num_layers=2, attention_types=layers, num_heads=2, max_position_embeddings=64
        )
    )


def albert() -> PreTrainedModel:
    return AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=64,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=1,
        )
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64))


MODELS = {"neo": neo, "albert": albert, "gpt2": gpt2}


def load(name: str, directory: Path, **numbers: Any) -> PreTrainedModel:
    """A small model whose configuration says other numbers than its weights."""
    MODELS[name]().save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    auto = AutoModelForSequenceClassification if name == "albert" else AutoModelForCausalLM
    return _load(auto, directory, dtype=torch.float32, divide=None)[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_its_own_numbers_is_built(name: str, tmp_path: Path) -> None:
    assert load(name, tmp_path / name).num_parameters() > 0


def test_a_mask_that_nothing_stored_asks_for_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match="model in neo: its configuration describes a model of far more numbers"
    ):
        load("neo", tmp_path / "neo", max_position_embeddings=1_000_000)  # a terabyte


@pytest.mark.parametrize("number", ["inner_group_num", "num_hidden_groups"])
def test_layers_without_number_are_not_built_one_by_one(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_building, "_SMALL_TENSORS", 1000)

    assert load("albert", tmp_path / "albert").num_parameters() > 0
    with pytest.raises(InvalidArgumentError, match="describes a model of far more tensors than its weights"):
        load("albert", tmp_path / "other", **{number: 1 << 24})
