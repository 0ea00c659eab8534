"""What is done to a model's transformer blocks, one by one."""

import shutil

import pytest
import torch
from torch import nn

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import TrainingParameters
from madpo_trainer.blocks import prepare_blocks, transformer_blocks


def test_blocks_are_found_with_and_without_adapters(make_toy_lm):
    from peft import LoraConfig, get_peft_model

    model = make_toy_lm()
    expected = list(model.model.layers)

    assert transformer_blocks(model) == expected
    assert transformer_blocks(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) == expected


def test_a_model_that_does_not_name_its_blocks_is_refused(make_toy_lm):
    model = make_toy_lm()
    model._no_split_modules = None

    with pytest.raises(InvalidArgumentError, match=r"does not say .*leave out training\.sharding"):
        transformer_blocks(model)


def test_a_model_that_cannot_recompute_is_refused(make_toy_lm):
    model = make_toy_lm()
    model.supports_gradient_checkpointing = False

    with pytest.raises(InvalidArgumentError, match=r"leave out training\.activation_checkpointing"):
        prepare_blocks(model, TrainingParameters(activation_checkpointing=True))


def test_compiling_without_a_compiler_is_refused(make_toy_lm, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(InvalidArgumentError, match=r"needs a C\+\+ compiler"):
        prepare_blocks(make_toy_lm(), TrainingParameters(compile=True))


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own workings
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) here")
def test_compiled_blocks_give_the_same_loss_and_gradients(make_toy_lm):
    def loss_and_gradients(model: nn.Module) -> list[torch.Tensor]:
        ids = torch.arange(24).reshape(2, 12) % 12
        loss = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[..., 3].mean()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    plain, compiled = make_toy_lm(), make_toy_lm()
    prepare_blocks(compiled, TrainingParameters(compile=True))
    torch._dynamo.utils.counters.clear()

    expected, found = loss_and_gradients(plain), loss_and_gradients(compiled)

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
