"""Anchored DPO on lists with heavy-tailed scores: the target follows smoothed ranks. Rebuilt from the paper's idea."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from madpo.losses.adpo import AnchoredConfig, anchored_list_scores
from madpo.losses.adpo_list import list_cross_entropy
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor

_MIN_BANDWIDTH = 1e-6
_MIN_RANK = 1e-6


class XAdpoKdeConfig(AnchoredConfig):
    """Parameters of ADPO with smoothed ranks."""

    beta_r: Coefficient = Field(default=1.0, gt=0)
    """Temperature of the ranks' logits."""


class SmoothedRanks(NamedTuple):
    """Of lists of responses, float32 or better, no gradient."""

    bandwidth: Tensor
    """In the scores' unit, [B, 1]."""
    rank: Tensor
    """From 0, the worst, to 1, the best; [B, K]. 0 where there is no response."""
    logit: Tensor
    """log(rank / (1 - rank)), [B, K]."""


def smoothed_ranks(scores: Tensor, mask: Tensor) -> SmoothedRanks:
    """Each response's place in a kernel estimate of its list's score distribution.

    With K responses of scores R and b = 1.06 * std(R) * K^(-1/5):
        rank_i = 1 / K * sum_j Phi((R_i - R_j) / b)
    It rises with the score, yet an outlier can only come close to 1 - 1 / (2K).

    Args:
        scores: Higher is better, [B, K]; no gradient is taken.
        mask: True on responses, [B, K].

    Source: our reconstruction; arXiv:2510.18913 names kernel-smoothed ranks without a formula we could read.
    """
    import torch

    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32)).where(mask, 0.0)
    count = mask.sum(dim=1, keepdim=True)
    deviation = (scores - scores.sum(dim=1, keepdim=True) / count).where(mask, 0.0)
    std = (deviation.square().sum(dim=1, keepdim=True) / (count - 1)).sqrt()
    bandwidth = (1.06 * std * count.to(scores.dtype) ** -0.2).clamp(min=_MIN_BANDWIDTH)
    below = torch.special.ndtr((scores[:, :, None] - scores[:, None, :]) / bandwidth[:, :, None])
    rank = (below.where(mask[:, None, :], 0.0).sum(dim=2) / count).where(mask, 0.0)
    return SmoothedRanks(bandwidth, rank, rank.clamp(_MIN_RANK, 1 - _MIN_RANK).logit())


def kde_target(scores: Tensor, mask: Tensor, *, beta_r: float) -> Tensor:
    """Target distribution over each list, softmax(logit(rank) / beta_r).

    Args:
        scores: Higher is better, [B, K].
        mask: True on responses, [B, K].
        beta_r: Temperature; positive.

    Returns:
        Probabilities [B, K], 0 where there is no response; even where all scores are equal.
    """
    logit = smoothed_ranks(scores, mask).logit
    return (logit / beta_r).masked_fill(~mask, float("-inf")).softmax(dim=1).to(scores.dtype)


def _loss(config: XAdpoKdeConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    mask = batch.require("list_mask")
    target = kde_target(batch.require("list_scores"), mask, beta_r=config.beta_r)
    per_list = list_cross_entropy(anchored_list_scores(config, batch), target, mask)
    return unweighted(per_list, metrics={"adpo/best_target": target.amax(dim=1)})


X_ADPO_KDE = Method(
    name="x_adpo_kde",
    config=XAdpoKdeConfig,
    requires=Requirements(reference=True, list=True),
    summary="Anchored DPO on lists, with the target from smoothed ranks, so that a single outlying score cannot claim "
    "it all.",
    source="Wang, arXiv:2510.18913 (idea)",
    formula="-sum(q * log p) over a list, p = softmax(log_ratio / tau), q = softmax(logit(rank) / beta_r), "
    "rank_i = mean over j of Phi((R_i - R_j) / b), b = 1.06 * std(R) * K^(-1/5)",
    loss=_loss,
    evidence="rebuilt",
)
