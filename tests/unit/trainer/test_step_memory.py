"""What a step is said to take of memory, and what is done when it runs out."""

import pytest
import torch

from madpo.jobs.training import TrainingParameters
from madpo.models.logps import ResponseGroup
from madpo.models.memory import is_out_of_memory
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.logps import PackedLogps
from madpo_trainer.blocks import prepare_blocks
from madpo_trainer.memory import estimate_memory
from tests.unit.models.packed.architectures import make_groups, make_model


def held_after_forward(model, groups):
    """Bytes that autograd holds once a forward pass over some groups is done, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = PackedLogps()(model, groups).logps.sum()
    assert loss.requires_grad
    return sum(size for pointer, size in held.items() if pointer not in weights)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_estimate_from_two_rows_holds_for_a_long_micro_batch(name, precision):
    model = make_model(name)
    use_packed_attention(model)
    short, long = ([ResponseGroup(list(range(3, 30)), (list(range(3, end)),))] for end in (8, 60))
    many = make_groups(1, responses=(2,) * 60)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        estimate = estimate_memory(
            model,
            {
                held_tokens(groups): lambda groups=groups: PackedLogps()(model, groups).logps.sum()
                for groups in (short, long)
            },
            largest_tokens=held_tokens(many),
            recompute=False,
        )
        measured = held_after_forward(model, many)

    # Half as much again is for the block that the backward pass is at: the model has two.
    assert measured == pytest.approx(estimate.activations / 1.5, rel=0.25)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.weights == weights
    assert estimate.training_state == 3 * weights
    assert estimate.to_come == weights + estimate.activations
    assert all(parameter.grad is None for parameter in model.parameters())


def held_tokens(groups):
    from madpo.models.packed.layout import packed_length

    return sum(map(packed_length, groups))


def test_recomputing_blocks_is_estimated_to_take_less():
    model = make_model("llama")
    use_packed_attention(model)
    prepare_blocks(model, TrainingParameters(activation_checkpointing=True))
    model.train()
    groups = make_groups()

    def estimate(*, recompute):
        return estimate_memory(
            model,
            {held_tokens(groups): lambda: PackedLogps()(model, groups).logps.sum()},
            largest_tokens=10_000,
            recompute=recompute,
        )

    assert model.training
    assert estimate(recompute=True).activations < 0.8 * estimate(recompute=False).activations


def test_frozen_weights_have_no_training_state():
    model = make_model("llama")
    use_packed_attention(model)
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    groups = make_groups()

    estimate = estimate_memory(
        model,
        {held_tokens(groups): lambda: PackedLogps()(model, groups).logps.sum()},
        largest_tokens=100,
        recompute=False,
    )

    assert estimate.training_state == 3 * model.lm_head.weight.nbytes


def test_errors_that_say_memory_ran_out_are_told_from_others():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    for said in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error\nLast error:\nFailed to CUDA calloc 6291456 bytes",
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ):
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
