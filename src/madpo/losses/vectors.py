"""Losses of given numbers, in float64: for users who check a method against code of their own.

The input names what `LossBatch` calls otherwise:

    {"batch": {"pi_w": [...], "pi_l": [...], "ref_w": [...], "ref_l": [...], "len_w": [...], "len_l": [...],
               "margin_h": [...]},
     "cases": [{"name": "mine", "method": "madpo", "params": {"beta": 0.1, "tau": 2}}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from madpo.errors import InternalError, InvalidArgumentError
from madpo.losses.method import LossBatch, LossContext, LossOutput, Method, MethodConfig
from madpo.losses.registry import get_method, parse_params

if TYPE_CHECKING:
    from torch import Tensor

FIELDS = {
    "pi_w": "policy_chosen_logps",
    "pi_l": "policy_rejected_logps",
    "ref_w": "ref_chosen_logps",
    "ref_l": "ref_rejected_logps",
    "len_w": "chosen_tokens",
    "len_l": "rejected_tokens",
    "margin_h": "reward_margin",
    "gold_logps": "gold_logps",
    "gold_tokens": "gold_tokens",
    "uncertainty_w": "chosen_uncertainty",
    "uncertainty_l": "rejected_uncertainty",
    "semantic_distance": "semantic_distance",
    "mismatched": "mismatched_logps",
    "ref_mismatched": "ref_mismatched_logps",
}


def evaluate_cases(document: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, per-pair losses, weights and gradients of each case, over the batch as one global batch.

    Chance, where a method takes any, starts from seed 0; state from empty.

    Raises:
        InvalidArgumentError: A column is missing, unknown, of another length or not of numbers; a method or parameter
            is wrong; a method needs what the batch does not have.
    """
    columns = _columns(document.get("batch"))
    cases = document.get("cases")
    if not isinstance(cases, Sequence) or not all(isinstance(case, Mapping) for case in cases):
        raise InvalidArgumentError('cases must be a list of {"name", "method", "params"}')
    return {"cases": [_evaluate(columns, case, f"cases[{index}]") for index, case in enumerate(cases)]}


def _columns(batch: Any) -> dict[str, list[float]]:
    if not isinstance(batch, Mapping) or not {"pi_w", "pi_l"} <= set(batch):
        raise InvalidArgumentError("batch must be an object with at least pi_w and pi_l")
    count = len(batch["pi_w"]) if isinstance(batch["pi_w"], list) else 0
    for name, values in batch.items():
        # What can be computed from the others may stand beside them.
        if name not in FIELDS and name not in ("rho_w", "rho_l", "delta"):
            raise InvalidArgumentError(f"batch has no column {name}; columns: {', '.join(FIELDS)}")
        numbers = isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)
        if not numbers or len(values) != count or not count:
            raise InvalidArgumentError(f"batch.{name} must be a list of {count or 'at least one'} numbers, as pi_w")
    return {name: values for name, values in batch.items() if name in FIELDS}


def _evaluate(columns: Mapping[str, list[float]], case: Mapping[str, Any], path: str) -> dict[str, Any]:
    import torch

    tensors = {FIELDS[name]: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    chosen = tensors["policy_chosen_logps"].requires_grad_()
    rejected = tensors["policy_rejected_logps"].requires_grad_()
    name = str(case.get("method"))
    method, config = get_method(name, path=path), parse_params(name, case.get("params", {}), path=path)
    try:
        output = _loss(method, config, LossBatch(**tensors))
    except InternalError as error:
        raise InvalidArgumentError(f"{path}: {name}: {error}; its column is missing from batch") from error
    loss = output.total(len(chosen))
    gradients = torch.autograd.grad(loss, (chosen, rejected), allow_unused=True)
    return {
        "name": case.get("name", name),
        "loss": float(loss.detach()),
        "per_pair": output.per_pair.tolist(),
        "weight": output.weight.tolist(),
        "grad_pi_w": _listed(gradients[0], chosen),
        "grad_pi_l": _listed(gradients[1], rejected),
    }


def _loss(method: Method, config: MethodConfig, batch: LossBatch) -> LossOutput:
    import torch

    stats: Mapping[str, Tensor] = {}
    if method.requirements(config).global_batch:
        assert method.observe is not None
        with torch.no_grad():
            stats = method.observe(config, batch)
    return method.loss(config, batch, LossContext(stats=stats, generator=torch.Generator().manual_seed(0)))


def _listed(gradient: Tensor | None, like: Tensor) -> list[float]:
    values: list[float] = (like.new_zeros(like.shape) if gradient is None else gradient).tolist()
    return values
