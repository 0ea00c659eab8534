"""What is gathered of a model for a checkpoint."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model

from madpo.errors import NonFiniteError
from madpo.jobs.training import OptimizerParameters
from madpo_trainer import written_parts
from madpo_trainer.optimizer import Optimizer
from madpo_trainer.ranks import OneRank
from madpo_trainer.sharding import gathered
from madpo_trainer.state import TrainingState, load_state, save_state
from madpo_trainer.trained_weights import refuse_non_finite_weights, saved_state
from madpo_trainer.written_parts import write_tensors


@pytest.fixture
def adapted(make_toy_lm):
    config = LoraConfig(r=2, target_modules="all-linear", task_type=TaskType.CAUSAL_LM, modules_to_save=["lm_head"])
    return get_peft_model(make_toy_lm(), config)


def test_of_a_model_with_adapters_only_what_they_add_is_gathered(adapted):
    state = saved_state(adapted, keep=True)

    assert set(state) == {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert sum(tensor.numel() for tensor in state.values()) < sum(each.numel() for each in adapted.parameters()) / 2


def test_of_a_whole_model_all_is_gathered(make_toy_lm):
    model = make_toy_lm()

    assert saved_state(model, keep=True).keys() == model.state_dict().keys()


def test_ranks_that_do_not_lead_keep_nothing(make_toy_lm):
    model = make_toy_lm()
    optimizer = Optimizer(model, OptimizerParameters(), total_steps=1)

    assert saved_state(model, keep=False) == {}
    assert dict(gathered(optimizer.tensors().items(), keep=False)) == {}
    assert list(gathered([("a", torch.ones(2))], keep=False)) == []


def test_moments_that_were_taken_ahead_change_no_bit_of_a_step(make_toy_lm):
    model = make_toy_lm()
    plain = copy.deepcopy(model)
    parameters = OptimizerParameters(learning_rate=0.1, weight_decay=0.0)
    ours = Optimizer(model, parameters, total_steps=3)
    theirs = torch.optim.AdamW(
        plain.parameters(),
        lr=0.1,
        betas=(parameters.beta1, parameters.beta2),
        eps=parameters.eps,
        weight_decay=0.0,
        fused=True,
    )
    for each in (model, plain):
        each(input_ids=torch.tensor([[1, 2, 3]])).logits.square().sum().backward()

    for group in theirs.param_groups:
        group["lr"] = ours.step(0)
    theirs.step()

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name


def test_a_weight_that_is_no_number_is_refused_by_name(adapted):
    name = next(name for name, parameter in adapted.named_parameters() if parameter.requires_grad)
    refuse_non_finite_weights(adapted, OneRank(), step=3)
    with torch.no_grad():
        adapted.get_parameter(name).view(-1)[0] = float("nan")

    with pytest.raises(NonFiniteError, match=f"non-finite weights after step 3, not saved: {name}"):
        refuse_non_finite_weights(adapted, OneRank(), step=3)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "optimizer.safetensors").mkdir()

    with pytest.raises(Exception, match=r"[Ii]s a directory"):
        write_tensors("optimizer", {"a": torch.ones(2)}, tmp_path, OneRank())


def test_what_the_optimizer_remembers_comes_back_from_several_files(make_toy_lm, tmp_path, monkeypatch):
    def stepped(model):
        optimizer = Optimizer(model, OptimizerParameters(), total_steps=4)
        model(input_ids=torch.arange(1, 9)[None]).logits.square().mean().backward()
        optimizer.step(0)
        return optimizer

    monkeypatch.setattr(written_parts, "PART_BYTES", 5_000)
    expected = stepped(make_toy_lm()).tensors()
    write_tensors("optimizer", expected, tmp_path, OneRank())
    again = Optimizer(make_toy_lm(), OptimizerParameters(), total_steps=4)

    again.restore(tmp_path)

    assert len(list(tmp_path.glob("optimizer-*.safetensors"))) > 2
    found = again.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    save_state(tmp_path, state=TrainingState(), metrics=[])
    assert json.loads((tmp_path / "state.json").read_text())["format"] == 2
    assert load_state(tmp_path)[0] == TrainingState()
