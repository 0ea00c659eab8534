"""ODPO: DPO with an offset, a margin that grows with the reward gap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["log", "identity"]

# The logarithm's domain: a smaller gap, or a label the reward model contradicts, is taken as this one.
_MIN_GAP = 1e-6


class OdpoConfig(MethodConfig):
    """Parameters of ODPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio. Published: 0.05 to 0.7."""
    alpha: Coefficient = Field(default=1.0, ge=0)
    """Factor on the offset; 0 gives DPO."""
    scale: Scale = "log"
    """Offset as the logarithm of the reward margin, or as the margin itself. The logarithm is negative for margins
    under 1, and margins of 1e-6 and less count as 1e-6: with so negative an offset the pair all but drops out."""


def odpo_offset(reward_margin: Tensor, *, alpha: float, scale: Scale = "log") -> Tensor:
    """Margin that the implicit reward of each pair has to reach.

    Args:
        reward_margin: Reward-model logits, chosen minus rejected, [B]; no gradient is taken.
        alpha: Factor; at least 0.
        scale: `log` takes alpha * log(max(reward_margin, 1e-6)), `identity` alpha * reward_margin.

    Returns:
        Offsets [B] without gradient.

    Source: Amini et al., arXiv:2402.10571. The authors' code gives NaN where the margin is not positive.
    """
    gap = reward_margin.detach()
    return alpha * (gap.clamp(min=_MIN_GAP).log() if scale == "log" else gap)


def _loss(config: OdpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    margin = batch.require("reward_margin").detach()
    offset = odpo_offset(margin, alpha=config.alpha, scale=config.scale)
    per_pair = dpo_loss(config.beta * batch.log_ratio_diff - offset, beta=1.0)
    metrics = {"odpo/offset": offset}
    if config.scale == "log":
        metrics["odpo/clamped_ratio"] = (margin <= _MIN_GAP).to(margin.dtype)
    return unweighted(per_pair, metrics=metrics)


ODPO = Method(
    name="odpo",
    config=OdpoConfig,
    requires=Requirements(reference=True, margin=True),
    summary="DPO with an offset: the better the reward model finds the chosen response, the larger the margin asked.",
    source="Amini et al., arXiv:2402.10571",
    formula="softplus(-(beta * log_ratio_diff - alpha * log(max(reward_margin, 1e-6))))",
    loss=_loss,
)
