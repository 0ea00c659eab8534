"""FocalPO: DPO that turns away from pairs the policy misranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, ValidationInfo, field_validator

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements

if TYPE_CHECKING:
    from torch import Tensor

# From here on the gradient of an undetached weight points the wrong way at the start, where p = 1/2.
_GAMMA_LIMIT = 1 / math.log(2)


class FocalpoConfig(MethodConfig):
    """Parameters of FocalPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    detach_weight: bool = False
    """Take no gradient through the focal weight, so that every pair's gradient keeps its sign."""
    gamma: Coefficient = Field(default=0.05, ge=0, validate_default=True)
    """Strength of the turn; 0 gives DPO. Below 1.4427 (1 / ln 2) unless `detach_weight`: pairs with
    p < exp(-1 / gamma) are pushed apart the wrong way, and from 1.4427 on that holds where training starts. The
    published default is not certain."""

    @field_validator("gamma")
    @classmethod
    def _training_starts_the_right_way(cls, gamma: float, info: ValidationInfo) -> float:
        if gamma >= _GAMMA_LIMIT and not info.data.get("detach_weight"):
            raise ValueError("should be less than 1.4427 unless detach_weight is true, else the loss trains backwards")
        return gamma


def focal_weight(log_ratio_diff: Tensor, *, beta: float, gamma: float) -> Tensor:
    """sigmoid(beta * log_ratio_diff)^gamma, [B], with gradient.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B].
        beta: Implicit reward per nat; positive.
        gamma: At least 0.

    Returns:
        Weights in [0, 1].
    """
    from torch.nn.functional import logsigmoid

    return (gamma * logsigmoid(beta * log_ratio_diff)).exp()


def focalpo_loss(log_ratio_diff: Tensor, *, beta: float, gamma: float, detach_weight: bool = False) -> Tensor:
    """Per-pair FocalPO loss.

    With p = sigmoid(beta * log_ratio_diff):
        loss = -p^gamma * log(p)
    Its slope in the margin, -p^gamma * (1 - p) * (1 + gamma * log(p)), changes sign at p = exp(-1 / gamma); with
    `detach_weight` it is -p^gamma * (1 - p).

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.
        gamma: Strength of the turn; at least 0.
        detach_weight: Take no gradient through p^gamma.

    Returns:
        Losses [B].

    Source: Liu et al., arXiv:2501.06645.
    """
    from torch.nn.functional import softplus

    weight = focal_weight(log_ratio_diff, beta=beta, gamma=gamma)
    return (weight.detach() if detach_weight else weight) * softplus(-beta * log_ratio_diff)


def _loss(config: FocalpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    log_ratio_diff = batch.log_ratio_diff
    return LossOutput(
        per_pair=focalpo_loss(log_ratio_diff, beta=config.beta, gamma=config.gamma, detach_weight=config.detach_weight),
        weight=focal_weight(log_ratio_diff.detach(), beta=config.beta, gamma=config.gamma),
    )


FOCALPO = Method(
    name="focalpo",
    config=FocalpoConfig,
    requires=Requirements(reference=True),
    summary="DPO with a focal factor: pairs the policy ranks wrong count for less.",
    source="Liu et al., arXiv:2501.06645",
    formula="p^gamma * softplus(-beta * log_ratio_diff), p = sigmoid(beta * log_ratio_diff)",
    loss=_loss,
    evidence="secondary",
)
