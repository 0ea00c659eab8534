"""Reward models whose scores change with the padding behind a text are trained and evaluated without padding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ConvBertConfig,
    PretrainedConfig,
    T5Config,
    XLNetConfig,
)

from madpo.jobs.training import TrainingParameters
from madpo.models.logps import ResponseGroup
from madpo.models.scores import reward_scores
from madpo.storage.models import ModelStore
from madpo.types import JobKind
from madpo_trainer.model_runner import ModelRunner, choose_layout
from madpo_trainer.ranks import OneRank
from tests.integration.trainer.training_site import Site
from tests.model_directories import save_directory

WORDS = 12
BERT = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {**BERT, "intermediate_size": 16, "max_position_embeddings": 64, "initializer_range": 0.5, "num_labels": 1}
XLNET = {"vocab_size": WORDS, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16, "pad_token_id": 0}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
READ_PADDING = {
    "ConvBERT": ConvBertConfig(**SIZES, embedding_size=16),
    "XLNet": XLNetConfig(**XLNET, initializer_range=0.5, num_labels=1),
}
MASK_PADDING = {
    "BERT": BertConfig(**SIZES),
    "T5": T5Config(**T5, eos_token_id=2, pad_token_id=0, decoder_start_token_id=0, num_labels=1),
}
GROUPS = [
    ResponseGroup((1, 6, 7), ((8, 9, 10, 6, 7, 8, 9, 10, 2), (8, 2))),
    ResponseGroup((1, 6, 7, 8, 9, 10), ((6, 2), (7, 8, 9, 2))),
]


def make_model(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def make_runner(model: Any) -> ModelRunner:
    parameters = TrainingParameters(precision="fp32")
    layout = choose_layout(model, parameters, needs_head=False)
    runner = ModelRunner(model, layout, parameters=parameters, ranks=OneRank(), gives_scores=True)
    runner.prove_layout(GROUPS)
    return runner


def alone(model: Any) -> torch.Tensor:
    """The score of each text of `GROUPS`, by itself."""
    texts = [torch.tensor([[*group.prompt_ids, *ids]]) for group in GROUPS for ids in group.responses]
    return torch.cat([reward_scores(model, text, torch.ones_like(text)) for text in texts])


@pytest.mark.parametrize("name", READ_PADDING)
def test_models_that_read_padding_score_every_text_alone(name: str) -> None:
    model = make_model(READ_PADDING[name])

    runner = make_runner(model)

    assert runner.layout.name == "alone"
    assert "lets padding change its scores (off by" in runner.layout.reason
    assert torch.equal(runner.scores(GROUPS), alone(model))


@pytest.mark.parametrize("name", MASK_PADDING)
def test_models_that_mask_padding_score_padded_batches(name: str) -> None:
    model = make_model(MASK_PADDING[name])

    runner = make_runner(model)

    assert runner.layout.name == "padded"
    torch.testing.assert_close(runner.scores(GROUPS), alone(model))


def test_rows_of_one_length_do_not_hide_it() -> None:
    runner = make_runner(make_model(READ_PADDING["XLNet"]))
    runner.micro_batches.layout = choose_layout(runner.model, TrainingParameters(), needs_head=False)

    runner.prove_layout([ResponseGroup((1, 6), ((7, 2), (8, 2)))])

    assert runner.layout.name == "alone"


def test_a_reward_model_that_reads_padding_is_trained_without(
    site: Site, make_toy_tokenizer: Callable[..., Any]
) -> None:
    directory = save_directory(make_model(READ_PADDING["ConvBERT"]), make_toy_tokenizer(), site.home / "convbert")
    model, _ = ModelStore(site.store, site.home / "cache").publish(directory, display_name="convbert", kind="reward")
    training = {"max_steps": 3, "global_batch_size": 8, "max_tokens": 32, "optimizer": {"learning_rate": 1e-3}}
    spec = {"dataset": site.pairs, "eval_dataset": site.pairs, "training": training}

    outcome = site.train("reward", spec | {"model": {"model_id": model.model_id}}, kind=JobKind.REWARD_TRAINING)

    assert outcome.result is not None, outcome.reason
    summary = outcome.result.summary
    assert summary["execution"]["layout"] == "alone"
    assert summary["eval"]["loss"] < summary["eval_before"]["loss"]
    assert "score one text at a time" in "".join(outcome.result.warnings)
