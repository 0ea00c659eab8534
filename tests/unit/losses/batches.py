"""A batch with every field filled, and one optimizer step the way `madpo.losses.method` tells its caller to form it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from madpo.losses.method import LossBatch, LossContext, LossOutput, Method, MethodConfig

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "losses.json").read_text())
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

WITH_GRADIENT = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "chosen_token_logps",
    "rejected_token_logps",
    "gold_logps",
    "list_logps",
)
OF_THE_POLICY = (*WITH_GRADIENT, "chosen_log_sum_p2", "rejected_log_sum_p2")

# Where a mask is False there is something, so that a loss which forgets the mask is found out.
_PADDING = -5.0

# The first list is that of the vectors; the others have fewer responses, at any place.
_LISTS = {
    "list_logps": [[-10, -11.5, -9, -14], [-8, -9.5, 0, -7.25], [-20, 0, -18.5, 0], [-6, -5, -7.5, -6.25]],
    "ref_list_logps": [[-10.5, -11, -9.25, -12], [-8.5, -9, 0, -8], [-19, 0, -19.5, 0], [-6.5, -5.5, -7, -6]],
    "list_scores": [[1, 0, 2, -1], [0.5, -0.75, 0, 1.25], [2, 0, 1, 0], [0.1, 0.3, 0.2, 3.0]],
    "list_tokens": [[8, 9, 7, 11], [6, 8, 1, 6], [15, 1, 14, 1], [5, 4, 6, 5]],
    "list_mask": [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]],
}


def full_batch(dtype: torch.dtype = torch.float64) -> LossBatch:
    """The vectors' four pairs with every field of `LossBatch` filled, consistent with each other.

    Token log-probs sum to those of their response; everything of `WITH_GRADIENT` is a leaf of its own.
    """
    shared = {name: _exact(values) for name, values in VECTORS["batch"].items()}
    columns: dict[str, Tensor] = {
        "policy_chosen_logps": shared["pi_w"],
        "policy_rejected_logps": shared["pi_l"],
        "ref_chosen_logps": shared["ref_w"],
        "ref_rejected_logps": shared["ref_l"],
        "reward_margin": shared["margin_h"],
        "gold_logps": _exact([-9, -18, -7, -22]),
        "chosen_uncertainty": _exact([0.2, 0.5, 0.1, 1]),
        "rejected_uncertainty": _exact([0.1, 0.1, 0.4, 0.2]),
        "semantic_distance": _exact([0.1, 0.4, 0, 1.2]),
        "mismatched_logps": _exact([-20, -25, -15.5, -35]),  # mean log-ratio 0.15
        "ref_mismatched_logps": _exact([-20.5, -24.75, -15.75, -35.1]),
        **{name: _exact(_LISTS[name]) for name in ("list_logps", "ref_list_logps", "list_scores")},
        **_tokens("chosen", shared["pi_w"], shared["ref_w"], shared["len_w"]),
        **_tokens("rejected", shared["pi_l"], shared["ref_l"], shared["len_l"]),
    }
    whole = {
        "chosen_tokens": shared["len_w"].long(),
        "rejected_tokens": shared["len_l"].long(),
        "gold_tokens": torch.tensor([9, 15, 6, 20]),
        "list_tokens": torch.tensor(_LISTS["list_tokens"]),
    }
    masks = {f"{side}_token_mask": _token_mask(whole[f"{side}_tokens"]) for side in ("chosen", "rejected")}
    list_mask = torch.tensor(_LISTS["list_mask"]).bool()
    for name in ("list_logps", "ref_list_logps", "list_scores"):
        columns[name] = columns[name].where(list_mask, _PADDING)
    batch = LossBatch(
        **{name: values.to(dtype) for name, values in columns.items()}, **whole, **masks, list_mask=list_mask
    )
    return with_gradient(batch)


def with_gradient(batch: LossBatch) -> LossBatch:
    """The same numbers, the policy's of them as new leaves."""
    leaves = {
        name: getattr(batch, name).detach().clone().requires_grad_()
        for name in WITH_GRADIENT
        if getattr(batch, name) is not None
    }
    return replace(batch, **leaves)


def take(batch: LossBatch, index: Any) -> LossBatch:
    """Some pairs of a batch; gradient flows back to it."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return LossBatch(**{name: column if column is None else column[index] for name, column in columns.items()})


def gradients(batch: LossBatch) -> dict[str, Tensor]:
    """What has arrived at the leaves of a batch, by field."""
    leaves = {name: getattr(batch, name) for name in WITH_GRADIENT}
    return {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}


class Step(NamedTuple):
    loss: Tensor
    outputs: list[LossOutput]
    state: dict[str, Tensor]
    """After the step."""


def train_step(
    method: Method,
    config: MethodConfig,
    batch: LossBatch,
    *,
    split: Sequence[Sequence[int]] | None = None,
    state: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    training: bool = True,
    stats: Mapping[str, Tensor] | None = None,
) -> Step:
    """The objective of one step over a global batch.

    Args:
        method: Of the registry.
        config: Its parameters.
        batch: The global batch.
        split: Places of each micro-batch's pairs; None takes the batch as one.
        state: Of the method before the step.
        seed: What the generator of each call starts from.
        training: As in `LossContext`.
        stats: Figures of the global batch, where they are not to be observed anew.
    """
    pairs = len(batch.policy_chosen_logps)
    places = split or [list(range(pairs))]
    requirements = method.requirements(config)
    if stats is None:
        stats = observed(method, config, batch, places) if requirements.global_batch else {}
    outputs = [
        method.loss(
            config,
            take(batch, list(rows)),
            LossContext(
                stats=stats,
                rows=None if split is None else torch.tensor(rows),
                pairs=None if split is None else pairs,
                state=state or {},
                generator=torch.Generator().manual_seed(seed) if requirements.stochastic else None,
                training=training,
            ),
        )
        for rows in places
    ]
    loss = torch.stack([output.total(pairs) for output in outputs]).sum()
    return Step(loss, outputs, _state_after(outputs, state or {}))


def observed(
    method: Method, config: MethodConfig, batch: LossBatch, places: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Figures of all pairs, in the batch's order; the policy is unknown unless the method asks for it."""
    assert method.observe is not None, f"{method.name} wants figures of the global batch but has no `observe`"
    if not method.requirements(config).policy_figures:
        batch = replace(batch, **{name: torch.full_like(getattr(batch, name), torch.nan) for name in _given(batch)})
    with torch.no_grad():
        parts = [method.observe(config, take(batch, list(rows))) for rows in places]
    order = torch.tensor([place for rows in places for place in rows]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


def _given(batch: LossBatch) -> list[str]:
    return [name for name in OF_THE_POLICY if getattr(batch, name) is not None]


def _state_after(outputs: Sequence[LossOutput], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states = [before if output.state is None else output.state for output in outputs]
    first = states[0]
    for state in states[1:]:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], first[name]) for name in first), "micro-batches disagree on the state"
    return dict(first)


def _tokens(side: str, logps: Tensor, ref_logps: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Unequal shares of each response's log-prob, and vocabularies a little more spread than they say."""
    mask = _token_mask(tokens.long())
    share = (2 + torch.arange(mask.shape[1], dtype=torch.float64).sin()) * mask
    share = share / share.sum(dim=1, keepdim=True)
    ref_share = share.flip(0) * mask + mask
    ref_share = ref_share / ref_share.sum(dim=1, keepdim=True)
    token_logps = share * logps[:, None]
    return {
        f"{side}_token_logps": token_logps.where(mask, _PADDING),
        f"ref_{side}_token_logps": (ref_share * ref_logps[:, None]).where(mask, _PADDING),
        f"{side}_log_sum_p2": (0.8 * token_logps - 0.1).where(mask, _PADDING),
    }


def _exact(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _token_mask(tokens: Tensor) -> Tensor:
    longest = max(map(max, (VECTORS["batch"]["len_w"], VECTORS["batch"]["len_l"])))
    return torch.arange(int(longest)) < tokens[:, None]
