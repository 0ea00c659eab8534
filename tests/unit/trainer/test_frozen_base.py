"""The frozen base under adapters in bf16: half the memory, and no other bit in what comes of it."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import TaskType
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from madpo.jobs.training import LoraParameters, TrainingParameters
from madpo.models.logps import ResponseGroup, padded_logps
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.logps import PackedLogps
from madpo.models.scores import inner_model
from madpo_trainer.adapters import with_adapters
from madpo_trainer.frozen_base import settle_base
from madpo_trainer.precision import training_autocast
from madpo_trainer.sharding import shard

CPU = torch.device("cpu")
HALF = TrainingParameters(precision="bf16", lora=LoraParameters(rank=2))
GROUPS = [ResponseGroup((1, 5, 6), ((7, 8, 2), (9, 2))), ResponseGroup((1, 4), ((3, 2),))]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 40}


def model_of(kind, make_toy_lm):
    torch.manual_seed(0)
    if kind == "llama":
        return make_toy_lm()
    if kind == "experts":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)).eval()


def adapted(kind, make_toy_lm):
    model = with_adapters(model_of(kind, make_toy_lm), HALF.lora, TaskType.CAUSAL_LM)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def results(model, logps):
    with training_autocast("cpu", HALF):
        found = logps(model, GROUPS).logps
    found.square().sum().backward()
    return [found.detach(), *(each.grad for each in model.parameters() if each.requires_grad)]


@pytest.mark.parametrize("kind", ["llama", "experts", "gpt2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_base_in_half_precision_changes_no_bit(kind, packed, make_toy_lm):
    whole = adapted(kind, make_toy_lm)
    if packed:
        use_packed_attention(inner_model(whole))
    half = copy.deepcopy(whole)
    logps = PackedLogps() if packed else padded_logps

    settle_base(half, HALF, CPU)

    in_half = {name for name, each in half.named_parameters() if each.dtype == torch.bfloat16}
    assert any("base_layer.weight" in name for name in in_half)
    assert not any(part in name for name in in_half for part in ("lora_", "embed", "norm", "wte"))
    assert all(torch.equal(*pair) for pair in zip(results(whole, logps), results(half, logps), strict=True))


def test_an_untied_head_is_in_half_precision_and_a_tied_one_is_not(make_toy_lm):
    model = adapted("llama", make_toy_lm)
    settle_base(model, HALF, CPU)
    assert inner_model(model).lm_head.weight.dtype == torch.bfloat16

    tied = make_toy_lm()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    settle_base(with_adapters(tied, HALF.lora, TaskType.CAUSAL_LM), HALF, CPU)
    assert tied.lm_head.weight.dtype == torch.float32
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_what_is_trained_or_computed_in_float32_stays_so(make_toy_lm):
    for parameters in (TrainingParameters(precision="bf16"), HALF.model_copy(update={"precision": "fp32"})):
        model = make_toy_lm() if parameters.lora is None else adapted("llama", make_toy_lm)
        settle_base(model, parameters, CPU)
        assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_ranks_keep_their_parts_in_half_precision(make_toy_lm):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole, model = adapted("llama", make_toy_lm), adapted("llama", make_toy_lm)
        settle_base(model, HALF, CPU)
        shard(model, CPU, precision="bf16")
        weight = inner_model(model).model.layers[0].self_attn.q_proj.base_layer.weight
        assert isinstance(weight, DTensor)
        assert weight.to_local().dtype == torch.bfloat16
        shard(whole, CPU, precision="bf16")
        found, expected = (results(each, padded_logps) for each in (model, whole))
        assert all(torch.equal(a.full_tensor(), b.full_tensor()) for a, b in zip(found[1:], expected[1:], strict=True))
        assert torch.equal(found[0], expected[0])
    finally:
        dist.destroy_process_group()
