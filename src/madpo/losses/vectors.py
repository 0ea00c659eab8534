"""Losses of given numbers, in float64: for users who check a method against code of their own.

The input names what `LossBatch` calls otherwise (`COLUMNS` and `ROWS`):

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

COLUMNS = {
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
"""One number for each pair."""

ROWS = {
    "tok_pi_w": ("chosen_token_logps", "chosen_token_mask"),
    "tok_pi_l": ("rejected_token_logps", "rejected_token_mask"),
    "tok_ref_w": ("ref_chosen_token_logps", "chosen_token_mask"),
    "tok_ref_l": ("ref_rejected_token_logps", "rejected_token_mask"),
    "log_sum_p2_w": ("chosen_log_sum_p2", "chosen_token_mask"),
    "log_sum_p2_l": ("rejected_log_sum_p2", "rejected_token_mask"),
    "list_pi": ("list_logps", "list_mask"),
    "list_ref": ("ref_list_logps", "list_mask"),
    "list_len": ("list_tokens", "list_mask"),
    "list_scores": ("list_scores", "list_mask"),
}
"""For each pair the numbers of its tokens, for each list those of its responses; columns with the same mask, which
follows from them, have as many in each row."""

_FROM_OTHERS = ("rho_w", "rho_l", "delta")
"""What can be computed from the others may stand beside them."""

_POLICY = ("pi_w", "pi_l", "gold_logps", "tok_pi_w", "tok_pi_l", "list_pi")
"""Columns whose gradient is given."""


def evaluate_cases(document: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, per-pair losses, weights and gradients of each case, over the batch as one global batch.

    Chance, where a method takes any, starts from seed 0; state from empty. `grad_pi_w` and `grad_pi_l` are always
    there; of the policy's other columns, where they are given.

    Raises:
        InvalidArgumentError: A column is missing, unknown, of another length or not of numbers; a method or parameter
            is wrong; a method needs what the batch does not have.
    """
    columns = _columns(document.get("batch"))
    cases = document.get("cases")
    if not isinstance(cases, Sequence) or not all(isinstance(case, Mapping) for case in cases):
        raise InvalidArgumentError('cases must be a list of {"name", "method", "params"}')
    return {"cases": [_evaluate(columns, case, f"cases[{index}]") for index, case in enumerate(cases)]}


def _columns(batch: Any) -> dict[str, list[Any]]:
    if not isinstance(batch, Mapping) or not ({"pi_w", "pi_l"} <= set(batch) or "list_pi" in batch):
        raise InvalidArgumentError("batch must be an object with at least pi_w and pi_l, or list_pi")
    first = "pi_w" if "pi_w" in batch else "list_pi"
    count = len(batch[first]) if isinstance(batch[first], list) else 0
    lengths: dict[str, list[int]] = {}
    for name, values in batch.items():
        if name not in COLUMNS and name not in ROWS and name not in _FROM_OTHERS:
            raise InvalidArgumentError(f"batch has no column {name}; columns: {', '.join([*COLUMNS, *ROWS])}")
        rows = values if name in ROWS else [values]
        if not isinstance(values, list) or len(values) != count or not count or not all(map(_is_numbers, rows)):
            what = "lists of numbers" if name in ROWS else "numbers"
            raise InvalidArgumentError(f"batch.{name} must be a list of {count or 'at least one'} {what}, as {first}")
        if name in ROWS:
            expected = lengths.setdefault(ROWS[name][1], list(map(len, values)))
            if list(map(len, values)) != expected:
                raise InvalidArgumentError(f"batch.{name} must have {expected} numbers in its rows")
    return {name: values for name, values in batch.items() if name not in _FROM_OTHERS}


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )


def _evaluate(columns: Mapping[str, list[Any]], case: Mapping[str, Any], path: str) -> dict[str, Any]:
    import torch

    name, params = str(case.get("method")), case.get("params") or {}
    if not isinstance(params, Mapping):
        raise InvalidArgumentError(f"{path}.params must be an object, got {params!r:.80}")
    method, config = get_method(name, path=path), parse_params(name, params, path=path)
    leaves = _tensors(columns)
    batch = _batch(columns, leaves)
    if "pi_w" not in columns and not method.requirements(config).list:
        raise InvalidArgumentError(f"{path}: {name} is a method of pairs; give pi_w and pi_l in batch")
    try:
        output = _loss(method, config, batch)
    except InternalError as error:
        raise InvalidArgumentError(f"{path}: {name}: {error}; its column is missing from batch") from error
    loss = output.total(len(batch.policy_chosen_logps))
    policy = [column for column in _POLICY if column in leaves]
    gradients = torch.autograd.grad(loss, [leaves[column] for column in policy], allow_unused=True)
    return {
        "name": case.get("name", name),
        "loss": float(loss.detach()),
        "per_pair": output.per_pair.tolist(),
        "weight": output.weight.tolist(),
        **{
            f"grad_{column}": _listed(gradient, leaves[column], columns[column])
            for column, gradient in zip(policy, gradients, strict=True)
        },
    }


def _tensors(columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """Of every column, rows padded on the right; those of the policy are leaves."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = {}
    for name, values in columns.items():
        rows = [torch.tensor(row, dtype=torch.float64) for row in values] if name in ROWS else []
        tensors[name] = pad_sequence(rows, batch_first=True) if rows else torch.tensor(values, dtype=torch.float64)
        tensors[name].requires_grad_(name in _POLICY)
    return tensors


def _batch(columns: Mapping[str, list[Any]], tensors: Mapping[str, Tensor]) -> LossBatch:
    import torch

    fields = {COLUMNS[name]: tensor for name, tensor in tensors.items() if name in COLUMNS}
    for name in columns.keys() & ROWS.keys():
        field, mask = ROWS[name]
        lengths = torch.tensor(list(map(len, columns[name])))
        fields |= {field: tensors[name], mask: torch.arange(int(lengths.max())) < lengths[:, None]}
    if "pi_w" not in columns:  # methods of lists do not look at pairs
        nothing = torch.full((len(columns["list_pi"]),), torch.nan, dtype=torch.float64)
        fields |= {"policy_chosen_logps": nothing, "policy_rejected_logps": nothing}
    return LossBatch(**fields)


def _loss(method: Method, config: MethodConfig, batch: LossBatch) -> LossOutput:
    import torch

    stats: Mapping[str, Tensor] = {}
    if method.requirements(config).global_batch:
        assert method.observe is not None
        with torch.no_grad():
            stats = method.observe(config, batch)
    return method.loss(config, batch, LossContext(stats=stats, generator=torch.Generator().manual_seed(0)))


def _listed(gradient: Tensor | None, like: Tensor, values: list[Any]) -> list[Any]:
    listed: list[Any] = (like.new_zeros(like.shape) if gradient is None else gradient).tolist()
    if like.dim() == 1:
        return listed
    return [row[: len(given)] for row, given in zip(listed, values, strict=True)]
