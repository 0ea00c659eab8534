"""What of a model is trained, and whether it moved: a job whose weights stood still has trained nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from madpo.errors import FailedPreconditionError, NonFiniteError
from madpo.models.dtypes import WeightDtypes
from madpo.models.text_part import text_parameters
from madpo_trainer.optimizer import trainable_parameters
from madpo_trainer.quantized_base import base_weight, numbers_beside
from madpo_trainer.ranks import Ranks
from madpo_trainer.sharding import gathered
from madpo_trainer.state import TrainingState

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element."""

_ROUNDING = 2.0**-24
"""Half the distance between two float32 numbers, over their size: what a smaller part of a sum adds is lost in it."""

_NOTHING_COUNTS = {
    "dataset_weight/mean": "the dataset gives every row that was trained on the weight 0",
    "weight/mean": "the method gave every pair the weight 0 (look at its parameters, and at the margins)",
    "pairs/kept_ratio": "the method kept no pair of any batch (look at its parameters)",
}
"""Why a loss has no gradient, by the figure that was 0 in every step."""


def describe_trained(model: nn.Module) -> dict[str, Any]:
    """Counts of parameters, trained and all that text goes through, and of adapted layers by the end of their names."""
    trained = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    total = sum(each.numel() for each in text_parameters(model)) + numbers_beside(model)
    layers = Counter(
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )
    figures: dict[str, Any] = {"parameters": trained, "of_parameters": total, "share": trained / total}
    return figures | ({"adapted_layers": dict(sorted(layers.items()))} if layers else {})


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of the parameters with a NaN or an infinity, of a sharded model in what this rank has of it."""
    return _non_finite(model.named_parameters())


def refuse_non_finite_weights(model: nn.Module, ranks: Ranks, *, step: int) -> None:
    """Look at the trained weights before anybody can start from them. All ranks must call.

    Args:
        model: May be sharded: each rank looks at what it has.
        ranks: All of them.
        step: The optimizer steps taken, for the message.

    Raises:
        NonFiniteError: Some weight is NaN or infinite; on all ranks.
    """
    trained = trainable_parameters(model)
    found = set().union(*ranks.gather(_non_finite(trained)))
    if bad := [name for name, _ in trained if name in found]:
        raise NonFiniteError(
            f"non-finite weights after step {step}, not saved: {', '.join(bad[:3])} "
            f"({len(bad)} of {len(trained)} tensors); lower the learning rate, or keep the model in a wider type"
        )


def saved_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """What is saved of a model, whole, by its name in the state dict: all of it, or only what an adapter adds.

    All ranks must call where the model is sharded; those that do not `keep` get nothing.
    """
    named = [
        (name, tensor.detach() if not isinstance(tensor, DTensor) else tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
    ]
    if isinstance(model, PeftModel):  # the base has its own place, and may be many times as large
        trained = {name for name, _ in trainable_parameters(model)}
        named = [(name, tensor) for name, tensor in named if name in trained]
    return dict(gathered(named, keep=keep))


def fingerprints(model: nn.Module, ranks: Ranks, *, dtypes: WeightDtypes) -> dict[str, int]:
    """A sum over the bits of every trained parameter, whole: another one after any change. All ranks must call.

    Args:
        model: May be sharded.
        ranks: All of them.
        dtypes: Those in which the weights will be left: a change that is lost in rounding is none.
    """
    mine = {name: _bit_sum(parameter, dtypes.of(name)) for name, parameter in trainable_parameters(model)}
    parts = ranks.gather(mine)
    sharded = {name for name, parameter in trainable_parameters(model) if isinstance(parameter, DTensor)}
    return {name: sum(part[name] for part in parts) if name in sharded else parts[0][name] for name in mine}


def summarise_training(model: nn.Module, ranks: Ranks, *, state: TrainingState, dtypes: WeightDtypes) -> dict[str, Any]:
    """What was trained and how much of it moved, for the job's result. All ranks must call.

    Raises:
        FailedPreconditionError: Nothing was trained; says why.
    """
    before, after = state.initial_weights, fingerprints(model, ranks, dtypes=dtypes)
    after |= {name: before[name] for name in lost_adapters(model, dtypes=dtypes) if name in before}
    moved = require_movement(before, after, largest=state.largest)
    return describe_trained(model) | ({"moved_tensors": moved, "of_tensors": len(after)} if before else {})


def lost_adapters(model: nn.Module, *, dtypes: WeightDtypes) -> set[str]:
    """Parameters of the adapters that change nothing in float32 beside the weight they go on. All ranks must call.

    One factor of an adapter begins at 0, so that any update changes its bits, however small. What an adapter adds to a
    layer is its scale times the product of its factors, whose size (the Frobenius norm) is told by r x r matrices.

    Args:
        model: May be sharded.
        dtypes: Those in which the weights will be left.

    Returns:
        Names of both factors, `lora_A` [r, in] and `lora_B` [out, r], of each such adapter.
    """
    lost: set[str] = set()
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = _whole(torch.linalg.vector_norm(base_weight(layer).float())).item()
        names = sorted(f"{layer_name}.{name}" for name, _ in trainable_parameters(layer) if name.startswith("lora_"))
        down, up = (_whole(model.get_parameter(name).detach()).to(dtypes.of(name)).double() for name in names)
        product = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()
        (adapter,) = layer.active_adapters
        if layer.scaling[adapter] * product <= _ROUNDING * weight:
            lost.update(names)
    return lost


def require_movement(before: Mapping[str, int], after: Mapping[str, int], *, largest: Mapping[str, float]) -> int:
    """How many trained parameters (tensors) differ from what they were before the first step.

    Args:
        before: Fingerprints of then; empty where a version that took none began the job, and nothing is known.
        after: Those of now.
        largest: The largest absolute value of every logged figure over all steps.

    Raises:
        FailedPreconditionError: Nothing was trained; says why.
    """
    moved = sum(after[name] != value for name, value in before.items())
    if before and "grad_norm" in largest and (not moved or not largest["grad_norm"]):
        raise FailedPreconditionError(f"nothing was trained: {_why_still(largest)}")
    return moved


def _why_still(largest: Mapping[str, float]) -> str:
    if largest["grad_norm"]:
        return (
            "no update was large enough to change a weight as it is left, with learning rates up to "
            f"{largest['learning_rate']:g} and gradient norms up to {largest['grad_norm']:g} "
            "(raise training.optimizer.learning_rate, or leave the weights in fp32: training.save_dtype)"
        )
    reasons = [reason for name, reason in _NOTHING_COUNTS.items() if largest.get(name) == 0.0]
    reason = reasons[0] if reasons else "the loss does not depend on what is trained (look at the method's parameters)"
    return f"every gradient of every step was 0: {reason}"


def _non_finite(named: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    return [name for name, parameter in named if not bool(torch.isfinite(_local(parameter)).all())]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local(parameter: nn.Parameter) -> Tensor:
    tensor = parameter.detach()
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _bit_sum(parameter: nn.Parameter, dtype: torch.dtype) -> int:
    local = _local(parameter).to(dtype).contiguous()
    return int(local.view(_INTEGERS[local.element_size()]).sum(dtype=torch.int64))
