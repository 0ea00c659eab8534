"""Hinge loss on the implicit margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class HingeConfig(MethodConfig):
    """Parameters of the hinge loss."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: a pair is done at a log-ratio difference of 1 / beta nats. 0.05 in
    RSO."""


def hinge_loss(log_ratio_diff: Tensor, *, beta: float) -> Tensor:
    """Per-pair hinge loss, max(0, 1 - beta * log_ratio_diff).

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses [B]; 0, as is the gradient, from a margin of 1 / beta nats on.

    Source: Liu et al., arXiv:2309.06657 ("hinge-norm"), after Zhao et al., arXiv:2305.10425.
    """
    return (1 - beta * log_ratio_diff).relu()


def _loss(config: HingeConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    per_pair = hinge_loss(batch.log_ratio_diff, beta=config.beta)
    return unweighted(per_pair, metrics={"hinge/active_ratio": (per_pair > 0).to(per_pair.dtype)})


HINGE = Method(
    name="hinge",
    config=HingeConfig,
    requires=Requirements(reference=True),
    summary="Support-vector form of DPO: a pair that is far enough apart no longer trains.",
    source="Liu et al., arXiv:2309.06657",
    formula="max(0, 1 - beta * log_ratio_diff)",
    loss=_loss,
)
