"""Weights in oneDNN's layout: the same products, no weight twice, and the way back to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    T5Config,
)

from madpo.models.prepacked import PrepackedLinear, prepack, unpack
from madpo.models.scores import inner_model, reward_scores

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "num_labels": 1,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2, with biases": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt-neox, one matrix for all of attention": lambda: GPTNeoXConfig(**SIZES),
    "bert, an encoder": lambda: BertConfig(**SIZES),
    "t5, whose code looks at dtypes of weights": lambda: T5Config(
        vocab_size=64,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        num_labels=1,
    ),
}


def classifier(name: str = "llama", *, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[name](), dtype=dtype).eval()


def adapted() -> Any:
    model = classifier()
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    return get_peft_model(model, config).eval()


@torch.inference_mode()
def scores(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 33, 7, 21, 1], [8, 3, 1, 0, 0, 0]])
    return reward_scores(model, ids, (ids != 0).long())


def linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) is nn.Linear]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_the_model_and_it_can_be_had_back_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = classifier(name, dtype=dtype)
    before, weights = scores(model), {key: value.clone() for key, value in model.state_dict().items()}
    body = inner_model(model).base_model
    many = len(linears(body))

    assert prepack(body) == many > 0

    assert not linears(body)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(scores(model), before, atol=tolerance, rtol=tolerance)
    unpack(body)
    assert len(linears(body)) == many
    assert torch.equal(scores(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_an_adapter_and_its_base_are_laid_out_both() -> None:
    model = adapted()
    before = scores(model)

    prepack(inner_model(model).base_model)

    assert not linears(inner_model(model).base_model)
    torch.testing.assert_close(scores(model), before, atol=1e-5, rtol=1e-5)


def test_a_layer_in_two_places_is_laid_out_once_and_no_weight_is_there_twice() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared), nn.Linear(6, 2, bias=False))

    assert prepack(model) == 2

    assert model[0][0] is model[1][0]
    assert not list(model.parameters())
    assert model[2].weight.is_meta


def test_the_rows_of_a_product_do_not_depend_on_each_other() -> None:
    torch.manual_seed(0)
    layer = PrepackedLinear(nn.Linear(96, 80))
    inputs = torch.randn(48, 96)

    together = layer(inputs)

    assert torch.equal(layer(inputs), together)
    assert torch.equal(layer(inputs.flip(0)), together.flip(0))


def test_a_layer_whose_product_would_be_another_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PrepackedLinear.forward
    monkeypatch.setattr(
        PrepackedLinear, "forward", lambda self, inputs: forward(self, inputs) + (self.out_features == 5)
    )
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))

    assert prepack(model) == 1

    assert type(model[0]) is nn.Linear
    assert type(model[1]) is PrepackedLinear


def test_without_onednn_a_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    model = nn.Sequential(nn.Linear(6, 5))

    assert prepack(model) == 0
    assert type(model[0]) is nn.Linear
