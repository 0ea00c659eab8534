"""Balanced preference optimisation: only the weaker side of a pair trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class BpoConfig(MethodConfig):
    """Parameters of balanced preference optimisation."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    alpha: float = Field(default=1.0, gt=0, le=1)
    """Factor on the fall of the rejected response before it is compared with the rise of the chosen one. The
    published value is not certain."""


def bpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Per-pair balanced loss.

        m = beta * min(chosen_log_ratio, -alpha * rejected_log_ratio),  loss = softplus(-m)
    m is positive only when the chosen response has risen above the reference and the rejected one has fallen below.
    Gradient reaches the smaller side alone, half of it each at a tie.

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        beta: Implicit reward per nat; positive.
        alpha: In (0, 1].

    Returns:
        Losses [B].

    Source: arXiv:2506.03557. Other methods are called BPO as well; this is the balanced one.
    """
    from torch.nn.functional import softplus

    return softplus(-beta * chosen_log_ratio.minimum(-alpha * rejected_log_ratio))


def _loss(config: BpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = batch.chosen_log_ratio, batch.rejected_log_ratio
    chosen_trains = (chosen < -config.alpha * rejected).to(chosen.dtype)
    return unweighted(
        bpo_loss(chosen, rejected, beta=config.beta, alpha=config.alpha),
        metrics={"bpo/chosen_active_ratio": chosen_trains},
    )


BPO = Method(
    name="bpo",
    config=BpoConfig,
    requires=Requirements(reference=True),
    summary="Balanced preference optimisation: asks the chosen response to rise and the rejected one to fall, by "
    "training whichever lags.",
    source="arXiv:2506.03557",
    formula="softplus(-beta * min(chosen_log_ratio, -alpha * rejected_log_ratio))",
    loss=_loss,
    evidence="secondary",
)
