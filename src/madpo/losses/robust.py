"""Robust DPO: an unbiased estimate of the DPO loss under flipped labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class RobustConfig(MethodConfig):
    """Parameters of robust DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Assumed share of pairs whose label is flipped."""


def robust_loss(log_ratio_diff: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Per-pair robust DPO loss.

    With u = beta * log_ratio_diff and e = label_smoothing:
        loss = ((1 - e) * softplus(-u) - e * softplus(u)) / (1 - 2e)
             = softplus(-u) - e / (1 - 2e) * u
    Its mean over labels flipped with probability e is the DPO loss of the true label. Unbounded below: for large u it
    falls by e / (1 - 2e) per unit.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.
        label_smoothing: Share of flipped labels, in [0, 0.5).

    Returns:
        Losses [B].

    Source: Chowdhury et al., arXiv:2403.00409. The authors call it rDPO, a name also used for other losses.
    """
    from torch.nn.functional import softplus

    implicit_margin = beta * log_ratio_diff
    return softplus(-implicit_margin) - label_smoothing / (1 - 2 * label_smoothing) * implicit_margin


def _loss(config: RobustConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(robust_loss(batch.log_ratio_diff, beta=config.beta, label_smoothing=config.label_smoothing))


ROBUST = Method(
    name="robust",
    config=RobustConfig,
    requires=Requirements(reference=True),
    summary="DPO made unbiased under a known share of flipped labels.",
    source="Chowdhury et al., arXiv:2403.00409",
    formula="softplus(-u) - label_smoothing / (1 - 2 * label_smoothing) * u, u = beta * log_ratio_diff",
    loss=_loss,
)
