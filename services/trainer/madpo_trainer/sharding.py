"""Weights, gradients and optimizer state of a model split over ranks: FSDP2 over its transformer blocks.

What lies outside of the blocks (embeddings, head) stays whole on every rank: the two are often one tensor, and
log-probs are computed from the head's weight itself. Seen over gloo on CPU only, not yet on GPUs.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from madpo.models.scores import inner_model
from madpo_trainer.blocks import transformer_blocks


def shard(model: Any, device: torch.device, *, precision: str) -> None:
    """Split a model, the same on all ranks, over all ranks of the default process group, in place.

    Every rank must from now on run the model equally often: each run gathers the weights. Gradients of sharded
    parameters come out summed over ranks.

    Args:
        model: On the CPU or the device, in float32.
        device: This rank's.
        precision: `bf16` gathers weights in bfloat16, half the bytes on the way and on the device, and sums gradients
            in float32. Under autocast alone, autograd would keep a copy of all gathered weights for the backward pass.
    """
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
    blocks = transformer_blocks(model)
    sharded = {id(parameter) for block in blocks for parameter in block.parameters()}
    base = inner_model(model).base_model
    is_half = precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root lets each block fetch its weights while the one before it computes.
    fully_shard(
        base, mesh=mesh, mp_policy=policy, ignored_params={p for p in base.parameters() if id(p) not in sharded}
    )
    for module in (*blocks, base):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds up


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(named: Iterable[tuple[str, Tensor]], *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Tensors one after the other, whole, on the CPU where they were sharded; nothing on ranks that do not `keep`.

    All ranks must ask for all of them. A device holds no more than one whole tensor at a time.
    """
    for name, tensor in named:
        found = whole(tensor)
        if keep:
            yield name, found.cpu() if isinstance(tensor, DTensor) else found


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as a parameter is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def by_layout(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Whole and sharded parameters apart, without empty groups: torch's fused loops take one sort at a time."""
    apart: Mapping[bool, list[nn.Parameter]] = {False: [], True: []}
    for parameter in parameters:
        apart[isinstance(parameter, DTensor)].append(parameter)
    return [group for group in apart.values() if group]


def clip_grad_norm(groups: Iterable[list[nn.Parameter]], max_norm: float) -> Tensor:
    """Scale gradients so that their global 2-norm is at most `max_norm`; the norm before. All ranks must call."""
    groups = list(groups)
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total
