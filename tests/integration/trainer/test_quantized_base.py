"""Adapters trained on a base in four bits (QLoRA), on a CPU."""

import json

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import TrainingParameters
from madpo.losses.registry import parse_params
from madpo.model_files.companions import MODEL_RECORD
from madpo.models.logps import ResponseGroup, padded_logps
from madpo.models.merge import write_merged
from madpo.storage.models import ModelStore
from madpo_trainer import adam
from madpo_trainer.quantized_base import FourBitLinear, numbers_beside, quantize_base
from tests.integration.trainer.test_nothing_trained import train

pytest.importorskip("bitsandbytes")

LORA = {"rank": 2, "target_modules": ["q_proj", "v_proj"], "quantize_base": "nf4"}


@pytest.fixture(scope="module")
def trained(site):
    outcome = train(site, "qlora", max_steps=4, checkpoint_every_steps=2, lora=LORA)
    assert outcome.kind == "succeeded", outcome.reason
    return outcome.result


def test_the_adapter_that_is_left_is_a_plain_one(site, trained, tmp_path):
    models = ModelStore(site.store, tmp_path / "copies")
    directory = models.fetch(trained.model_id)
    assert "quant" not in (directory / "adapter_config.json").read_text()
    base = models.fetch(json.loads((directory / MODEL_RECORD).read_text())["base_model_id"])

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)

    assert {type(module) for module in plain.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert plain(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_merged_it_is_the_base_as_it_is_stored_with_the_adapter(site, trained, tmp_path):
    models = ModelStore(site.store, tmp_path / "copies")
    directory = models.fetch(trained.model_id)
    base = models.fetch(json.loads((directory / MODEL_RECORD).read_text())["base_model_id"])

    write_merged(directory, tmp_path / "merged", base_directory=base, kind="causal_lm")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), directory)
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(merged(ids).logits, expected(ids).logits, rtol=0, atol=1e-5)
    assert not any("quant" in path.read_text() for path in (tmp_path / "merged").glob("*.json"))


def test_the_result_counts_weights_whole_and_says_what_it_was_trained_on(trained, site):
    summary = trained.summary
    whole = train(site, "lora", max_steps=1, lora={**LORA, "quantize_base": None}).result.summary

    assert summary["trained"]["of_parameters"] == whole["trained"]["of_parameters"]
    assert summary["execution"]["quantize_base"] == "nf4"
    assert "quantize_base" not in whole["execution"]
    assert summary["trained"]["moved_tensors"] > 0


def test_a_job_that_stopped_goes_on_to_the_same_bits(site, trained):
    paused = train(site, "paused", max_steps=4, checkpoint_every_steps=2, lora=LORA, pause_at=2)

    assert paused.result.model_id == trained.model_id


def test_four_bits_stand_for_weights_nearby(make_toy_lm):
    model = make_toy_lm()
    groups = [ResponseGroup([1, 4, 5], ([6, 7, 2],))]
    before, weight = padded_logps(model, groups).logps, model.model.layers[0].mlp.down_proj.weight.detach().clone()
    numbers = sum(each.numel() for each in model.parameters())
    model.requires_grad_(False)

    quantize_base(model, TrainingParameters(precision="fp32"), torch.device("cpu"))

    linear = model.model.layers[0].mlp.down_proj
    assert isinstance(linear, FourBitLinear)
    assert type(model.lm_head) is nn.Linear
    assert sum(each.numel() for each in model.parameters()) + numbers_beside(model) == numbers
    off = (linear.whole_weight() - weight).norm() / weight.norm()
    assert 0 < off < 0.15
    assert padded_logps(model, groups).logps.item() == pytest.approx(before.item(), rel=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_four_bits_is_that_with_what_they_stand_for(dtype):
    torch.manual_seed(0)
    plain = nn.Linear(96, 40)
    small = FourBitLinear(plain, dtype, torch.device("cpu"))
    assert (small.weight.nbytes, small.scales.nbytes) == (40 * 128 / 2, 40 * 2 * 4)  # rows are filled up
    states = torch.randn(5, 96, dtype=dtype, requires_grad=True)
    twin = states.detach().clone().requires_grad_()

    found = small(states)
    expected = nn.functional.linear(twin, small.whole_weight().to(dtype)) + plain.bias.detach().to(dtype)
    for each in (found, expected):
        each.float().square().sum().backward()

    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(states.grad, twin.grad)


@pytest.mark.parametrize("method", ["dpo", "tr_dpo"])
def test_a_reference_that_is_mixed_from_weights_is_refused(method):
    config = parse_params(method, {})

    assert config.adapter_conflict() == ""
    assert bool(config.adapter_conflict(quantized=True)) is (method == "tr_dpo")


def test_without_the_library_the_job_ends_before_anything_is_loaded(site, monkeypatch):
    def missing(asked):
        raise FailedPreconditionError(f"{asked} needs bitsandbytes")

    monkeypatch.setattr(adam, "require_bitsandbytes", missing)

    with pytest.raises(FailedPreconditionError, match=r"training\.lora\.quantize_base: nf4 needs bitsandbytes"):
        train(site, "missing", lora=LORA)
