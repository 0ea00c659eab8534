"""Anchored DPO on rankings: the Plackett-Luce likelihood of the order of each list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from madpo.losses.adpo import AnchoredConfig, anchored_list_scores
from madpo.losses.method import LossBatch, LossContext, LossOutput, Method, Requirements
from madpo.losses.terms import unweighted
from madpo.types import AtMost

if TYPE_CHECKING:
    from torch import Tensor


class AdpoPlConfig(AnchoredConfig):
    """Parameters of ADPO on rankings."""

    reduction: Literal["mean", "sum"] = "mean"
    """Average over the positions of a ranking, as the published code does, or add them up, which is the textbook
    likelihood."""
    top_k: Annotated[int | None, AtMost(10_000)] = Field(default=None, ge=1)
    """Count only so many positions from the top; 3 in the later published code. Null: all."""


def plackett_luce_terms(anchored_scores: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of each choice in a ranking, the best of all first, then the best of the rest, ...

    With the responses in falling order of their scores and v = anchored_scores, position k has
        log(sum over j >= k of exp(v_j)) - v_k
    The first of a list of two is DPO with beta = 1 / tau.

    Args:
        anchored_scores: Of `madpo.losses.adpo.anchored_score`, [B, K], with gradient.
        scores: Higher is better, [B, K]; of equal ones the first in the list ranks higher.
        mask: True on responses, [B, K].

    Returns:
        [B, K - 1]; 0 past the last choice of a shorter list.

    Source: Wang, arXiv:2510.18913; Plackett, "The analysis of permutations" (1975).
    """
    import torch

    places = mask.shape[1]
    # By rank, with the places that hold no response at the end.
    order = scores.detach().masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    v = anchored_scores.gather(1, order)
    held = mask.gather(1, order)
    later = torch.ones(places, places, dtype=torch.bool, device=mask.device).triu()
    itself = torch.eye(places, dtype=torch.bool, device=mask.device)
    remaining = (later & held[:, None, :]) | itself
    log_sum = v[:, None, :].masked_fill(~remaining, float("-inf")).logsumexp(dim=2)
    return (log_sum - v)[:, :-1].where(held[:, 1:], 0.0)


def _loss(config: AdpoPlConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    mask = batch.require("list_mask")
    terms = plackett_luce_terms(anchored_list_scores(config, batch), batch.require("list_scores"), mask)
    positions = mask.sum(dim=1) - 1
    if config.top_k is not None:
        terms, positions = terms[:, : config.top_k], positions.clamp(max=config.top_k)
    per_list = terms.sum(dim=1)
    return unweighted(per_list / positions if config.reduction == "mean" else per_list)


ADPO_PL = Method(
    name="adpo_pl",
    config=AdpoPlConfig,
    requires=Requirements(reference=True, list=True),
    summary="Anchored DPO on rankings: raises the Plackett-Luce likelihood of the order of each list.",
    source="Wang, arXiv:2510.18913",
    formula="mean over positions k < K of log(sum over j >= k of exp(v_j)) - v_k, v = log_ratio / tau in falling order "
    "of scores",
    loss=_loss,
)
