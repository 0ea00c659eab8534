"""Which weights decay."""

import pytest
import torch
from torch import nn

from madpo.jobs.training import OptimizerParameters
from madpo_trainer.optimizer import Optimizer


def decayed(model):
    """Names of the parameters that a step without gradient makes smaller."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(model, OptimizerParameters(learning_rate=0.1, weight_decay=0.5, warmup_steps=0), total_steps=1).step(0)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for name in moved:
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), before[name] * 0.95)
    return moved


def test_matrices_decay_and_norms_do_not(make_toy_lm):
    model = make_toy_lm()

    names = decayed(model)

    assert {name for name, _ in model.named_parameters()} - names == {
        name for name, _ in model.named_parameters() if "norm" in name
    }
    assert "model.embed_tokens.weight" in names


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj, self.up_proj_bias = nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(2, 4))
        self.down = nn.Linear(4, 3)


def test_biases_do_not_decay_even_those_of_many_experts():
    assert decayed(Experts()) == {"up_proj", "down.weight"}


@pytest.mark.parametrize("dora", [False, True])
def test_both_factors_of_an_adapter_decay_and_its_magnitudes_do_not(make_toy_lm, dora):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_toy_lm(), LoraConfig(target_modules=["q_proj"], use_dora=dora, init_lora_weights=False))

    names = decayed(model)

    assert {name.rsplit(".", 3)[1] for name in names} == {"lora_A", "lora_B"}
    assert any("magnitude" in name for name, _ in model.named_parameters()) is dora
