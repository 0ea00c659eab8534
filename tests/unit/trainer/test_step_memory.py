"""What a step is said to take of memory, and what is done when it runs out."""

import pytest
import torch

from madpo.jobs.training import TrainingParameters
from madpo.models.logps import ResponseGroup
from madpo.models.memory import is_out_of_memory
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.capability import Layout
from madpo.models.packed.head import head_of, working_bytes
from madpo.models.packed.logps import PackedLogps
from madpo.models.scores import inner_model
from madpo_trainer import memory
from madpo_trainer.memory import estimate_memory
from madpo_trainer.micro_batches import MicroBatches
from madpo_trainer.precision import training_autocast
from madpo_trainer.ranks import OneRank
from madpo_trainer.step_memory import settle_step_memory
from tests.unit.models.packed.architectures import make_groups, make_model
from tests.unit.trainer.measured import NAMES, WAYS, most_taken, small_model


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


@pytest.mark.parametrize(("lora", "recompute", "precision"), WAYS, ids=NAMES)
def test_a_step_takes_what_was_estimated_from_two_short_rows(lora, recompute, precision):
    parameters = TrainingParameters(lora=lora, activation_checkpointing=recompute, precision=precision)
    model = small_model(parameters)
    rows = [pairs(tokens, 1) for tokens in (30, 120)]

    with training_autocast("cpu", parameters):
        estimate = estimate_memory(
            model,
            {held_tokens(row): lambda row=row: PackedLogps()(model, row).logps.sum() for row in rows},
            largest_tokens=held_tokens(pairs(250, 3)),
            head=working_bytes(head_of(inner_model(model)), tokens=3 * 2 * 62),
        )

    assert model.training
    found = estimate.recomputed if recompute else estimate.activations
    assert found == pytest.approx(most_taken(parameters, pairs(250, 3)), rel=0.2)


def pairs(tokens, count):
    """Pairs that take up so many tokens each: half of them the prompt's."""
    prompt, response = tokens // 2, tokens // 4
    return [ResponseGroup(range(prompt), (range(response), range(1, response + 1)))] * count


class Objective:
    """What is looked at of one, over a small model."""

    def __init__(self, parameters, longest=150):
        self.model, self.longest, self.rows = small_model(parameters), longest, [pairs(30, 1), pairs(120, 1)]
        self.lengths = [held_tokens(row) for row in self.rows]

    def idle(self, row=0):
        return PackedLogps()(self.model, self.rows[row]).logps.sum()


def settle(monkeypatch, *, free, asked=None, ranks=None, **other):
    parameters = TrainingParameters(activation_checkpointing=asked, precision="fp32")
    objective = Objective(parameters)
    for name, value in other.items():
        setattr(objective.model, name, value)
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    micro_batches = MicroBatches(Layout("packed"), budget_tokens=1000)
    settled = settle_step_memory(objective, micro_batches, parameters, ranks or OneRank(), batch_size=10)
    return objective.model.is_gradient_checkpointing, settled


def test_blocks_are_computed_again_where_a_step_would_else_not_fit(monkeypatch):
    _, roomy = settle(monkeypatch, free=10 << 30)
    assert roomy.summary()["activation_checkpointing"] is False
    assert roomy.reason == "a step fits without"
    assert roomy.estimate.recomputed < 0.5 * roomy.estimate.activations

    are_recomputed, tight = settle(monkeypatch, free=roomy.estimate.to_come - 1)

    assert are_recomputed
    assert tight.recompute
    assert tight.reason == "without, a step would lack 0.0 GiB"
    assert tight.estimate.fits
    assert tight.estimate.activations == roomy.estimate.recomputed


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_job_says_of_activations_is_done(monkeypatch, asked):
    are_recomputed, settled = settle(monkeypatch, free=0, asked=asked)

    assert are_recomputed is settled.recompute is asked
    assert settled.reason == f"training.activation_checkpointing: {str(asked).lower()}"
    assert not settled.estimate.fits


def test_a_model_that_cannot_compute_blocks_again_is_left(monkeypatch):
    are_recomputed, settled = settle(monkeypatch, free=0, supports_gradient_checkpointing=False)

    assert not are_recomputed
    assert settled.reason == "the model cannot do it"


def test_the_rank_with_least_room_decides_for_all(monkeypatch):
    class Crowded(OneRank):
        def gather(self, value):
            return [value, 3.0]

    are_recomputed, settled = settle(monkeypatch, free=10 << 30, ranks=Crowded())

    assert are_recomputed
    assert settled.reason == "without, a step would lack 3.0 GiB"


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
