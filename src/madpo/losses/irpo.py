"""IRPO: in-context ranking preference optimisation, for lists with graded relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor

Weighting = Literal["gain_log_discount", "log_discount", "gain_discount"]

# Grades are small numbers; it keeps 2^relevance finite when scores are something else.
_MAX_RELEVANCE = 30.0


class IrpoConfig(MethodConfig):
    """Parameters of IRPO."""

    beta: Coefficient = Field(default=1.0, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    weighting: Weighting = "gain_log_discount"
    """How much a response of relevance r at rank k counts: (2^r - 1) / log2(1 + k), as in NDCG; 1 / log2(1 + k); or
    (2^r - 1) / k. The last two are the paper's ablations."""


def irpo_weight(relevance: Tensor, mask: Tensor, *, weighting: Weighting = "gain_log_discount") -> Tensor:
    """How much each response of a list counts; see `IrpoConfig.weighting`.

    Args:
        relevance: Grades, [B, K]; below 0 counts as 0. They also give the ranks: the highest has rank 1, of equal ones
            the first in the list ranks higher. No gradient is taken.
        mask: True on responses, [B, K].
        weighting: Which formula.

    Returns:
        Weights [B, K], 0 where there is no response.

    Source: Wu et al., arXiv:2504.15477, with the authors' published code.
    """
    relevance = relevance.detach().masked_fill(~mask, float("-inf"))
    order = relevance.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).to(relevance.dtype) + 1
    gain = relevance.clamp(0, _MAX_RELEVANCE).exp2() - 1
    discount = rank if weighting == "gain_discount" else (1 + rank).log2()
    weight = discount.reciprocal() if weighting == "log_discount" else gain / discount
    return weight.where(mask, 0.0)


def irpo_terms(log_ratio: Tensor, weight: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Loss of each response of a list, against all others at once.

    With n responses of log-ratios r:
        G_i = log(sum over j != i of exp(beta * (r_j - r_i))) - log(n - 1)
        loss_i = weight_i * softplus(G_i)
    The authors' code takes j = i out by an offset of -100 before beta multiplies it, which leaks for a small beta, and
    adds up over lists; here it is masked exactly, and the mean over responses and lists is the caller's.

    Args:
        log_ratio: Policy minus reference log-prob, [B, K], in nats, with gradient.
        weight: Of `irpo_weight`, [B, K].
        mask: True on responses, at least two per list, [B, K].
        beta: Implicit reward per nat; positive.

    Returns:
        [B, K], 0 where there is no response.

    Source: Wu et al., arXiv:2504.15477, with the authors' published code.
    """
    import torch
    from torch.nn.functional import softplus

    reward = beta * log_ratio.where(mask, 0.0)
    others = mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    log_sum = reward[:, None, :].masked_fill(~others, float("-inf")).logsumexp(dim=2)
    log_others = (mask.sum(dim=1, keepdim=True) - 1).to(reward.dtype).log()
    return weight * softplus(log_sum - reward - log_others).where(mask, 0.0)


def _loss(config: IrpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    mask = batch.require("list_mask")
    weight = irpo_weight(batch.require("list_scores"), mask, weighting=config.weighting)
    log_ratio = batch.require("list_logps") - batch.require("ref_list_logps")
    terms = irpo_terms(log_ratio, weight, mask, beta=config.beta)
    return unweighted(terms.sum(dim=1) / mask.sum(dim=1))


IRPO = Method(
    name="irpo",
    config=IrpoConfig,
    requires=Requirements(reference=True, list=True),
    summary="In-context ranking preference optimisation: raises relevant responses over their list, the more the more "
    "relevant. Scores are grades from 0 up. Unrelated to iterative reasoning preference optimisation (`rpo`).",
    source="Wu et al., arXiv:2504.15477",
    formula="mean over a list of (2^score - 1) / log2(1 + rank) * softplus(G_i), "
    "G_i = log(mean over j != i of exp(beta * (log_ratio_j - log_ratio_i)))",
    loss=_loss,
)
