"""The forms of AdamW: the same steps, remembered in other ways."""

import copy
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs.training import OptimizerParameters, TrainingParameters
from madpo_trainer import adam
from madpo_trainer.adam import most_visiting, remembered_bytes, require_libraries
from madpo_trainer.optimizer import Optimizer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(70, 256)
        self.wide = nn.Linear(256, 80)
        self.norm = nn.LayerNorm(256)

    def forward(self, ids):
        return self.wide(self.norm(self.embedding(ids))).square().mean()


def optimizer_of(model, **fields):
    return Optimizer(model, OptimizerParameters(learning_rate=0.01, warmup_steps=0, **fields), total_steps=8)


def take_steps(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model(torch.randint(70, (4, 9), generator=generator)).backward()
        optimizer.clip()
        optimizer.step(step)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_moments_on_the_host_give_the_same_bits_piece_by_piece(monkeypatch):
    one, other = Model(), Model()
    expected = take_steps(one, optimizer_of(one), range(4))
    monkeypatch.setattr(adam, "SLICE", 1000)  # several pieces of the matrices

    optimizer = optimizer_of(other, offload=True)
    found = take_steps(other, optimizer, range(4))

    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    theirs, ours = optimizer_of(one).tensors(), optimizer.tensors()
    assert ours.keys() == theirs.keys()
    assert ours["wide.weight/step"] == 4


FORMS = [{}, {"offload": True}, {"name": "adamw_8bit"}]


@pytest.mark.parametrize("fields", FORMS, ids=["adamw", "offload", "8bit"])
def test_a_step_after_a_checkpoint_is_that_without_one(tmp_path, fields):
    if "name" in fields:
        pytest.importorskip("bitsandbytes")
    whole = Model()
    expected = take_steps(whole, optimizer_of(whole, **fields), range(6))

    first = Model()
    optimizer = optimizer_of(first, **fields)
    take_steps(first, optimizer, range(3))
    save_file(optimizer.tensors(), tmp_path / "optimizer.safetensors")
    second = copy.deepcopy(first)
    resumed = optimizer_of(second, **fields)
    resumed.restore(tmp_path)
    found = take_steps(second, resumed, range(3, 6))

    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_eight_bits_go_about_where_thirty_two_do_and_remember_a_quarter():
    pytest.importorskip("bitsandbytes")
    one, other, before = Model(), Model(), Model()
    expected = take_steps(one, optimizer_of(one), range(6))
    optimizer = optimizer_of(other, name="adamw_8bit")
    found = take_steps(other, optimizer, range(6))

    start = list(before.parameters())
    moved, off = (
        torch.cat([(a - b).flatten() for a, b in zip(expected, them, strict=True)]).norm() for them in (start, found)
    )
    assert off < 0.1 * moved
    state = optimizer.tensors()
    assert state["wide.weight/state1"].dtype == torch.uint8
    assert state["embedding.weight/state1"].dtype == torch.float32
    assert state["norm.weight/state2"].dtype == torch.float32


def test_what_is_remembered_is_told_beforehand():
    pytest.importorskip("bitsandbytes")
    model = Model()
    optimizer = optimizer_of(model, name="adamw_8bit")
    told = remembered_bytes(model, OptimizerParameters(name="adamw_8bit"))

    for name, parameter in model.named_parameters():
        state = {slot: value for slot, value in optimizer._adam.state[parameter].items() if "qmap" not in slot}
        held = sum(value.nbytes for slot, value in state.items() if slot != "step")
        assert told[id(parameter)] == held, name
    assert remembered_bytes(model, OptimizerParameters())[id(model.wide.weight)] == 2 * model.wide.weight.nbytes


def test_of_moments_on_the_host_a_piece_is_on_the_card(monkeypatch):
    assert most_visiting([10, 30]) == 240
    monkeypatch.setattr(adam, "SLICE", 20)
    assert most_visiting([10, 30]) == 160
    assert most_visiting([]) == 0


def test_a_form_that_another_left_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = Model()
    save_file(optimizer_of(model).tensors(), tmp_path / "optimizer.safetensors")

    with pytest.raises(FailedPreconditionError, match=r"exp_avg, exp_avg_sq, step, which is not of adamw_8bit"):
        optimizer_of(model, name="adamw_8bit").restore(tmp_path)


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(FailedPreconditionError, match=r"adamw_8bit needs bitsandbytes .* pip install 'madpo\[gpu\]'"):
        require_libraries(TrainingParameters(optimizer={"name": "adamw_8bit"}))
    require_libraries(TrainingParameters())


def test_two_ways_to_remember_less_do_not_go_together():
    with pytest.raises((ValueError, InvalidArgumentError), match="offload goes with adamw"):
        TrainingParameters.model_validate({"optimizer": {"name": "adamw_8bit", "offload": True}})
