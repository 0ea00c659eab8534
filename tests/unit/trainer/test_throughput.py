"""What is said of a training's speed."""

import pytest
import torch
from peft import TaskType
from torch import nn
from transformers import AutoModelForCausalLM

from madpo.jobs.training import LoraParameters
from madpo_trainer.adapters import with_adapters
from madpo_trainer.ranks import OneRank
from madpo_trainer.state import make_deterministic
from madpo_trainer.throughput import Throughput, card_flops, flops_per_token
from tests.unit.models.packed.architectures import CONFIGS, make_model
from tests.unit.trainer.measured import SMALL

BLOCKS = 6 * (128 * (128 + 2 * 64 + 128) + 3 * 128 * 448)
"""Weights of the matrices in the blocks of the small model."""


def test_operations_are_counted_by_weight_and_by_what_is_trained():
    model = AutoModelForCausalLM.from_config(SMALL)
    assert flops_per_token(model) == 6 * BLOCKS

    adapted = with_adapters(model, LoraParameters(rank=4, target_modules=("q_proj",)), TaskType.CAUSAL_LM)
    assert flops_per_token(adapted) == 4 * BLOCKS + 6 * 6 * (128 * 4 + 4 * 128)


def test_transposed_layers_are_counted_too():
    inner, width = 4 * 32, CONFIGS["gpt2"].n_embd
    assert flops_per_token(make_model("gpt2")) == 6 * 2 * (width * 4 * width + 2 * width * inner)


def test_nothing_is_said_of_what_is_no_transformer_or_has_experts():
    model = AutoModelForCausalLM.from_config(SMALL)
    model.model.layers[0].experts = nn.Parameter(torch.zeros(2, 3, 4))

    assert flops_per_token(model) is None
    assert flops_per_token(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "fp32", 156e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA of tomorrow", "bf16", None),
    ],
)
def test_the_share_of_a_card_is_told_where_its_best_is_known(monkeypatch, name, precision, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    assert card_flops(torch.device("cuda"), precision) == expected


def test_a_step_says_its_tokens_and_the_share_of_all_cards(monkeypatch):
    monkeypatch.setattr("madpo_trainer.throughput.card_flops", lambda device, precision: 1e9)
    speed = Throughput(AutoModelForCausalLM.from_config(SMALL), precision="fp32", ranks=OneRank())

    figures = speed.figures(tokens=100, seconds=2.0)

    assert figures == {"tokens_per_s": 50.0, "flop_share": 50.0 * 6 * BLOCKS / 1e9}
    summary = speed.summary({"tokens": 100.0, "step_s": 2.0})
    assert summary.pop("peak_memory_gib") > 0.05  # torch itself takes more
    assert summary == {"device": "cpu", **figures}
    assert "tokens_per_s" not in speed.summary({})


def test_strict_determinism_refuses_where_it_was_only_warned_of():
    try:
        make_deterministic(None, strict=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        make_deterministic(None)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
