"""APO: anchored preference optimisation, which says where each side of a pair should go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class ApoConfig(MethodConfig):
    """Parameters of APO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""


def apo_zero_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Per-pair APO-zero loss, 1 - sigmoid(beta * chosen_log_ratio) + sigmoid(beta * rejected_log_ratio).

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses [B] within (0, 2), 1 where the policy equals the reference.

    Source: D'Oosterlinck et al., arXiv:2408.06266.
    """
    return (-beta * chosen_log_ratio).sigmoid() + (beta * rejected_log_ratio).sigmoid()


def apo_down_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Per-pair APO-down loss, sigmoid(beta * chosen_log_ratio) + 1 - sigmoid(beta * log_ratio_diff).

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses [B] within (0, 2), 1 where the policy equals the reference.

    Source: D'Oosterlinck et al., arXiv:2408.06266.
    """
    return (beta * chosen_log_ratio).sigmoid() + (-beta * (chosen_log_ratio - rejected_log_ratio)).sigmoid()


def _zero(config: ApoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(apo_zero_loss(batch.chosen_log_ratio, batch.rejected_log_ratio, beta=config.beta))


def _down(config: ApoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(apo_down_loss(batch.chosen_log_ratio, batch.rejected_log_ratio, beta=config.beta))


APO_ZERO = Method(
    name="apo_zero",
    config=ApoConfig,
    requires=Requirements(reference=True),
    summary="Anchored preference optimisation for chosen responses better than the model's: raises them, lowers the "
    "rejected ones.",
    source="D'Oosterlinck et al., arXiv:2408.06266",
    formula="1 - sigmoid(beta * chosen_log_ratio) + sigmoid(beta * rejected_log_ratio)",
    loss=_zero,
)

APO_DOWN = Method(
    name="apo_down",
    config=ApoConfig,
    requires=Requirements(reference=True),
    summary="Anchored preference optimisation for chosen responses worse than the model's: lowers both, the rejected "
    "ones more.",
    source="D'Oosterlinck et al., arXiv:2408.06266",
    formula="sigmoid(beta * chosen_log_ratio) + 1 - sigmoid(beta * log_ratio_diff)",
    loss=_down,
)
