"""Anchored DPO on lists: cross-entropy of a softmax over the responses of one prompt, to a softmax of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.adpo import AnchoredConfig, anchored_list_scores
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


# As in the published code.
_STD_OFFSET = 1e-8


class AdpoListConfig(AnchoredConfig):
    """Parameters of ADPO's cross-entropy on lists."""

    beta_r: Coefficient = Field(default=0.5, gt=0)
    """Temperature of the scores, in their unit, or in standard deviations of each list with `standardize`. As in the
    first published code; 0.3 later."""
    standardize: bool = True
    """Standardise each list's scores, as the published code does; the paper's first versions take them raw."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over the list; 0.1 in the later published code."""
    poly_weight: Coefficient = Field(default=0.0, ge=0)
    """Weight of 1 - sum(q * p) beside the cross-entropy ("poly-1"); 1 in the later published code."""


def list_target(
    scores: Tensor, mask: Tensor, *, beta_r: float, standardize: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Target distribution over each list, softmax(scores / beta_r).

    Args:
        scores: Higher is better, [B, K]; no gradient is taken.
        mask: True on responses, [B, K].
        beta_r: Temperature; positive.
        standardize: Take each list's mean off its scores, and divide by their standard deviation (of n - 1; lists of
            equal scores stay at 0).
        label_smoothing: Share spread evenly.

    Returns:
        Probabilities [B, K], 0 where there is no response.

    Source: Wang, arXiv:2510.18913.
    """
    scores = scores.detach().where(mask, 0.0)
    count = mask.sum(dim=1, keepdim=True)
    if standardize:
        # From the lowest, so that equal scores differ by exactly 0.
        above = (scores - scores.masked_fill(~mask, float("inf")).amin(dim=1, keepdim=True)).where(mask, 0.0)
        deviation = (above - above.sum(dim=1, keepdim=True) / count).where(mask, 0.0)
        std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1)).sqrt()
        scores = deviation / (std + _STD_OFFSET)
    target = (scores / beta_r).masked_fill(~mask, float("-inf")).softmax(dim=1)
    return (1 - label_smoothing) * target + label_smoothing * mask.to(target.dtype) / count


def list_cross_entropy(anchored_scores: Tensor, target: Tensor, mask: Tensor, *, poly_weight: float = 0.0) -> Tensor:
    """Per-list cross-entropy -sum(q * log p), p = softmax(anchored_scores).

    Its gradient with respect to the anchored scores is p - q; it is least, at q's entropy, where they are log q up to a
    constant. With two responses and a one-hot target it is DPO.

    Args:
        anchored_scores: Of `madpo.losses.adpo.anchored_score`, [B, K], with gradient.
        target: q, [B, K], summing to 1 over responses; no gradient is taken.
        mask: True on responses, [B, K].
        poly_weight: Weight of 1 - sum(q * p) beside it.

    Returns:
        Losses [B].

    Source: Wang, arXiv:2510.18913.
    """
    target = target.detach()
    log_p = anchored_scores.masked_fill(~mask, float("-inf")).log_softmax(dim=1).where(mask, 0.0)
    loss = -(target * log_p).sum(dim=1)
    return loss if poly_weight == 0 else loss + poly_weight * (1 - (target * log_p.exp()).sum(dim=1))


def _loss(config: AdpoListConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    mask = batch.require("list_mask")
    target = list_target(
        batch.require("list_scores"),
        mask,
        beta_r=config.beta_r,
        standardize=config.standardize,
        label_smoothing=config.label_smoothing,
    )
    per_list = list_cross_entropy(anchored_list_scores(config, batch), target, mask, poly_weight=config.poly_weight)
    return unweighted(per_list, metrics={"adpo/best_target": target.amax(dim=1)})


ADPO_LIST = Method(
    name="adpo_list",
    config=AdpoListConfig,
    requires=Requirements(reference=True, list=True),
    summary="Anchored DPO on lists: the policy's shares of a list follow a softmax of the responses' scores.",
    source="Wang, arXiv:2510.18913",
    formula="-sum(q * log p) over a list, p = softmax(log_ratio / tau), q = softmax(standardised score / beta_r)",
    loss=_loss,
)
