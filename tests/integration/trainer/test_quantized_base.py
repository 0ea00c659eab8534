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
from madpo.storage.models import ModelStore
from madpo_trainer import adam
from madpo_trainer.quantized_base import base_weight, numbers, quantize_base
from tests.integration.trainer.test_nothing_trained import train

bitsandbytes = pytest.importorskip("bitsandbytes")

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
    before, weight = padded_logps(model, groups).logps, model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    model.requires_grad_(False)

    quantize_base(model, TrainingParameters(precision="fp32"), torch.device("cpu"))

    linear = model.model.layers[0].self_attn.q_proj
    assert isinstance(linear, bitsandbytes.nn.Linear4bit)
    assert type(model.lm_head) is nn.Linear
    assert linear.weight.nbytes <= weight.nbytes / 8
    assert numbers(linear.weight) == weight.numel()

    class Layer:
        def get_base_layer(self):
            return linear

    off = (base_weight(Layer()) - weight).norm() / weight.norm()
    assert 0 < off < 0.15
    assert padded_logps(model, groups).logps.item() == pytest.approx(before.item(), rel=0.4)


@pytest.mark.parametrize("method", ["dpo", "tr_dpo"])
def test_a_reference_that_is_mixed_from_weights_is_refused(method):
    config = parse_params(method, {})

    assert config.adapter_conflict() == ""
    assert bool(config.adapter_conflict(quantized=True)) is (method == "tr_dpo")


def test_ranks_that_split_the_base_are_refused():
    with pytest.raises(ValueError, match="quantize_base is for a model that is whole on each GPU"):
        TrainingParameters.model_validate({"lora": LORA, "sharding": "fsdp"})


def test_without_the_library_the_job_ends_before_anything_is_loaded(site, monkeypatch):
    def missing(asked):
        raise FailedPreconditionError(f"{asked} needs bitsandbytes")

    monkeypatch.setattr(adam, "require_bitsandbytes", missing)

    with pytest.raises(FailedPreconditionError, match=r"training\.lora\.quantize_base: nf4 needs bitsandbytes"):
        train(site, "missing", lora=LORA)
