"""In which precision a sharded model is gathered, and what of it autograd keeps. One rank: the code is the same."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from madpo.models.device import precision_on
from madpo_trainer.memory import estimate_memory
from madpo_trainer.sharding import shard, whole

CPU = torch.device("cpu")


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def forward(model, *, autocast=True):
    """The loss, and the bytes of what autograd keeps of the forward pass, parts of the model apart."""
    own = {local(tensor).untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext(),
    ):
        loss = model(input_ids=torch.arange(1, 9)[None]).logits.float().square().mean()
    # What was gathered is given back after the forward pass of its block: its storage is empty then.
    return loss, sum(storage.nbytes() for place, storage in kept.items() if place not in own)


def test_gathered_weights_are_not_kept_in_half_precision(one_rank, make_toy_lm):
    plain, half = make_toy_lm(), make_toy_lm()
    blocks = sum(parameter.numel() for parameter in plain.model.layers.parameters())
    shard(plain, CPU, precision="fp32")
    shard(half, CPU, precision="bf16")

    _, under_autocast = forward(plain)
    _, gathered_in_half = forward(half)

    assert under_autocast - gathered_in_half > 2 * blocks * 0.8


def test_weights_stay_in_float32_and_gradients_are_summed_in_it(one_rank, make_toy_lm):
    plain, half = make_toy_lm(), make_toy_lm()
    before = copy.deepcopy(dict(half.named_parameters()))
    shard(half, CPU, precision="bf16")

    loss, _ = forward(half)
    loss.backward()
    expected, _ = forward(plain)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    for name, parameter in half.named_parameters():
        assert torch.equal(whole(parameter.detach()), before[name])
        assert parameter.grad.dtype == torch.float32
        reference = plain.get_parameter(name).grad
        assert float((whole(parameter.grad) - reference).norm()) <= 0.05 * float(reference.norm()), name


def test_full_precision_is_that_of_a_whole_model(one_rank, make_toy_lm):
    plain, full = make_toy_lm(), make_toy_lm()
    shard(full, CPU, precision="fp32")

    loss, _ = forward(full, autocast=False)
    expected, _ = forward(plain, autocast=False)

    assert torch.equal(loss, expected)


def test_frozen_weights_that_are_gathered_are_not_counted_among_activations(one_rank, make_toy_lm):
    def kept(model):
        model.requires_grad_(False)
        model.model.norm.requires_grad_(True)
        first = next(iter(model.model.layers))
        first.input_layernorm.requires_grad_(True)
        run = lambda: model(input_ids=torch.arange(1, 9)[None]).logits.square().sum()  # noqa: E731
        return estimate_memory(model, {8: run}, largest_tokens=8).activations

    sharded = make_toy_lm()
    shard(sharded, CPU, precision="fp32")

    assert kept(sharded) == kept(make_toy_lm())


def test_tied_embeddings_and_head_stay_one(one_rank, make_toy_lm):
    plain = make_toy_lm()
    plain.config.tie_word_embeddings = True
    plain.tie_weights()
    sharded = copy.deepcopy(plain)
    shard(sharded, CPU, precision="bf16")

    loss, _ = forward(sharded)
    loss.backward()
    expected, _ = forward(plain)
    expected.backward()

    assert isinstance(sharded.lm_head.weight, DTensor)
    assert sharded.lm_head.weight is sharded.model.embed_tokens.weight
    gradient, reference = whole(sharded.lm_head.weight.grad), plain.lm_head.weight.grad
    assert float((gradient - reference).norm()) <= 0.05 * float(reference.norm())


@pytest.mark.parametrize(
    ("device", "asked", "has_it", "precision"),
    [
        ("cuda", "auto", True, "bf16"),
        ("cuda", "auto", False, "fp32"),
        ("cpu", "auto", True, "fp32"),
        ("cuda", "fp32", True, "fp32"),
        ("cpu", "bf16", False, "bf16"),
    ],
)
def test_what_is_not_asked_for_is_what_the_device_does_best(monkeypatch, device, asked, has_it, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)

    assert precision_on(torch.device(device), asked) == precision
