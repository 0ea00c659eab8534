"""NCA on pairs: noise contrastive alignment of absolute likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class NcaPairConfig(MethodConfig):
    """Parameters of NCA on pairs."""

    beta: Coefficient = Field(default=0.01, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""


def nca_pair_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Per-pair NCA loss.

    With a = beta * chosen_log_ratio and b = beta * rejected_log_ratio:
        loss = softplus(-a) + softplus(a) / 2 + softplus(b) / 2

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses [B], 2 * log(2) where the policy equals the reference.

    Source: Chen et al., arXiv:2402.05369.
    """
    from torch.nn.functional import softplus

    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return softplus(-chosen) + 0.5 * softplus(chosen) + 0.5 * softplus(rejected)


def _loss(config: NcaPairConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(nca_pair_loss(batch.chosen_log_ratio, batch.rejected_log_ratio, beta=config.beta))


NCA_PAIR = Method(
    name="nca_pair",
    config=NcaPairConfig,
    requires=Requirements(reference=True),
    summary="Noise contrastive alignment on pairs: a chosen response's likelihood must rise, not only its lead.",
    source="Chen et al., arXiv:2402.05369",
    formula="softplus(-a) + softplus(a) / 2 + softplus(b) / 2, a = beta * chosen_log_ratio, "
    "b = beta * rejected_log_ratio",
    loss=_loss,
)
