"""DPO with the reward model's own probability as a soft label: the control of every margin-weighted method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class RmSoftConfig(MethodConfig):
    """Parameters of reward-model soft labels."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""


def rm_soft_loss(log_ratio_diff: Tensor, reward_margin: Tensor, *, beta: float) -> Tensor:
    """Per-pair cross-entropy between the reward model's preference and the policy's.

    With u = beta * log_ratio_diff and h = reward_margin:
        loss = sigmoid(h) * softplus(-u) + sigmoid(-h) * softplus(u)
    The label enters only as the order of the pair: swapping both responses changes nothing. Least at u = h.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        reward_margin: Reward-model logits, chosen minus rejected, [B]; no gradient is taken.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses [B].
    """
    from torch.nn.functional import softplus

    u, h = beta * log_ratio_diff, reward_margin.detach()
    return h.sigmoid() * softplus(-u) + (-h).sigmoid() * softplus(u)


def _loss(config: RmSoftConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    margin = batch.require("reward_margin").detach()
    return unweighted(
        rm_soft_loss(batch.log_ratio_diff, margin, beta=config.beta),
        metrics={"rm_soft/target": margin.sigmoid(), "rm_soft/contradicted_ratio": (margin < 0).to(margin.dtype)},
    )


RM_SOFT = Method(
    name="rm_soft",
    config=RmSoftConfig,
    requires=Requirements(reference=True, margin=True),
    summary="DPO on the reward model's probabilities in place of labels: what MADPO must be compared with.",
    source="own",
    formula="sigmoid(h) * softplus(-u) + sigmoid(-h) * softplus(u), u = beta * log_ratio_diff, h = reward_margin",
    loss=_loss,
    evidence="own",
)
