"""Weights, gradients and optimizer state of a model split over ranks: FSDP2 over its transformer blocks.

Embeddings and head are sharded too; where they are one tensor it stays gathered from the one to the other. What else
lies outside of the blocks is small, and whole on every rank. Seen over gloo on CPU only, not yet on GPUs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from madpo.models.scores import inner_model
from madpo_trainer.blocks import transformer_blocks


def divide(model: nn.Module, *, device: torch.device) -> None:
    """Make DTensors of what `shard` splits of a model without memory: the part that this rank is to read.

    Args:
        model: On the meta device.
        device: This rank's.
    """
    mesh = _mesh(device)

    def part(parameter: nn.Parameter) -> nn.Parameter:
        found = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
        return nn.Parameter(found, requires_grad=parameter.requires_grad)

    modules = {each for module in (*transformer_blocks(model), *outer_modules(model)) for each in module.modules()}
    _replace(_places(module for module in model.modules() if module in modules), part)


def shard(model: Any, device: torch.device, *, precision: str) -> None:
    """Split a model over all ranks of the default process group, in place.

    Every rank must from now on run the model equally often: each run gathers the weights. Gradients of sharded
    parameters come out summed over ranks.

    Args:
        model: In float32. The same on all ranks, on the CPU or the device, or in the parts of `divide`.
        device: This rank's.
        precision: `bf16` gathers weights in bfloat16, half the bytes on the way and on the device, and sums gradients
            in float32. Under autocast alone, autograd would keep a copy of all gathered weights for the backward pass.
    """
    mesh = _mesh(device)
    parts = [place for place in _places(model.modules()) if isinstance(place[2], DTensor)]
    _replace(parts, _without_memory)
    blocks, (embeddings, *head) = transformer_blocks(model), outer_modules(model)
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    full = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    sharded = {id(parameter) for module in (*blocks, embeddings, *head) for parameter in module.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=half)
    # Embeddings are where the sum over the blocks begins, which is kept in float32.
    is_tied = any(embeddings.weight is module.weight for module in head)
    if not is_tied:
        fully_shard(embeddings, mesh=mesh, mp_policy=full)
    # The root lets each block fetch its weights while the one before it computes.
    root = _root(model)
    fully_shard(
        root,
        mesh=mesh,
        mp_policy=full if is_tied else half,
        reshard_after_forward=True,
        ignored_params={parameter for parameter in root.parameters() if id(parameter) not in sharded},
    )
    root.as_forward = _run
    register_fsdp_forward_method(root, "as_forward")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds up
    _fill(parts, device)
    model.to(device)


def _mesh(device: torch.device) -> DeviceMesh:
    assert dist.group.WORLD is not None
    return DeviceMesh.from_group(dist.group.WORLD, device.type)


def _root(model: Any) -> Any:
    """The module whose forward pass takes embeddings and head, if it has one, along."""
    inner = inner_model(model)
    return inner.base_model if inner.get_output_embeddings() is None else inner


def outer_modules(model: Any) -> list[Any]:
    """Embeddings of tokens, and the head of a language model."""
    inner = inner_model(model)
    return [module for module in (inner.get_input_embeddings(), inner.get_output_embeddings()) if module is not None]


def _without_memory(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _run(compute: Callable[[], Any]) -> Any:
    return compute()


_Place = tuple[nn.Module, str, nn.Parameter]
"""A parameter, and where a module has it."""


def _places(modules: Iterable[nn.Module]) -> list[_Place]:
    """One that is tied is there several times."""
    return [
        (module, name, parameter)
        for module in modules
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    ]


def _replace(places: Iterable[_Place], make: Callable[[nn.Parameter], nn.Parameter]) -> None:
    """Put other parameters in the places; what is tied stays so."""
    made: dict[int, nn.Parameter] = {}
    for module, name, parameter in places:
        if id(parameter) not in made:
            made[id(parameter)] = make(parameter)
        setattr(module, name, made[id(parameter)])


def _fill(parts: Iterable[_Place], device: torch.device) -> None:
    """Give what was sharded without memory the parts that were read."""
    read = {id(getattr(module, name)): part for module, name, part in parts}

    def filled(sharded: nn.Parameter) -> nn.Parameter:
        assert isinstance(sharded, DTensor)
        local = read[id(sharded)].to_local().to(device)  # type: ignore[attr-defined]
        assert local.shape == sharded.to_local().shape
        found = DTensor.from_local(
            local, sharded.device_mesh, sharded.placements, shape=sharded.shape, stride=sharded.stride()
        )
        return nn.Parameter(found, requires_grad=sharded.requires_grad)

    _replace([(module, name, getattr(module, name)) for module, name, _ in parts], filled)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(named: Iterable[tuple[str, Tensor]], *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Tensors one after the other, whole, on the CPU where they were sharded; nothing on ranks that do not `keep`.

    All ranks must ask for all of them. A device holds no more than one whole tensor at a time. One that is there under
    several names stays one.
    """
    done: dict[int, Tensor] = {}
    for name, tensor in (named := list(named)):
        if isinstance(tensor, DTensor) and id(tensor) not in done:
            found = whole(part_of(local(tensor.detach()), tensor))  # on the device, which ranks send from
            done[id(tensor)] = found.cpu() if keep else found.new_empty(0)
        if keep:
            yield name, done.get(id(tensor), tensor).detach()


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor that may be sharded, in the same memory."""
    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def part_of(tensor: Tensor, like: DTensor) -> DTensor:
    """A tensor of which each rank has a part, on the ranks' device; of as many rows as another one, split alike.

    Args:
        tensor: This rank's part.
        like: Split along its first dimension.
    """
    shape = torch.Size([len(like), *tensor.shape[1:]])
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(tensor, like.device_mesh, like.placements, shape=shape, stride=strides)


def read_part(file: Any, key: str, like: DTensor) -> Tensor:
    """What this rank has of a stored tensor that is split as another one; no more of it is read.

    Args:
        file: An open safetensors file.
        key: Of a tensor with the other one's shape.
        like: Split along its first dimension.
    """
    mesh, length = like.device_mesh, len(like)
    rows = -(-length // mesh.size())
    first = min(mesh.get_local_rank() * rows, length)
    found: Tensor = file.get_slice(key)[first : min(first + rows, length)]
    return found


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
