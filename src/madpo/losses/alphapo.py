"""AlphaPO: SimPO with another shape of reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.simpo import simpo_loss
from madpo.losses.terms import average_logps, max_exponent, unweighted

if TYPE_CHECKING:
    from torch import Tensor


class AlphapoConfig(MethodConfig):
    """Parameters of AlphaPO."""

    beta: Coefficient = Field(default=2.0, gt=0)
    """Scale of the reward; there is no reference to stay close to."""
    gamma_beta_ratio: Coefficient = Field(default=0.25, ge=0)
    """Target margin over beta, in units of the shaped reward."""
    alpha: float = Field(default=0.25, ge=-2, le=2)
    """Shape of the reward: 0 gives SimPO, -1 a reward linear in the probability; above 0 unlikely tokens cost more
    than their log-prob."""


def alphapo_reward(average_logps: Tensor, *, alpha: float) -> Tensor:
    """Shaped reward of responses, over beta.

    With p = exp(average_logps), the geometric mean of token probabilities:
        (1 - p^-alpha) / alpha, and log p for alpha = 0
    The exponent ends at 80 (11 in float16), where the reward is flat.

    Args:
        average_logps: Log-prob per token, in nats, [B], with gradient.
        alpha: Shape.

    Returns:
        Rewards, increasing in `average_logps`; 0 at probability 1.

    Source: Gupta et al., arXiv:2501.03884.
    """
    if alpha == 0:
        return average_logps
    return -(-alpha * average_logps).clamp(max=max_exponent(average_logps)).expm1() / alpha


def _loss(config: AlphapoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen = alphapo_reward(
        average_logps(batch.policy_chosen_logps, batch.require("chosen_tokens")), alpha=config.alpha
    )
    rejected = alphapo_reward(
        average_logps(batch.policy_rejected_logps, batch.require("rejected_tokens")), alpha=config.alpha
    )
    return unweighted(simpo_loss(chosen - rejected, beta=config.beta, gamma_beta_ratio=config.gamma_beta_ratio))


ALPHAPO = Method(
    name="alphapo",
    config=AlphapoConfig,
    requires=Requirements(lengths=True),
    summary="SimPO with a reward whose shape is tuned by alpha, to hold back the fall of both likelihoods.",
    source="Gupta et al., arXiv:2501.03884",
    formula="softplus(-beta * (r(chosen) - r(rejected) - gamma_beta_ratio)), r = (1 - p^-alpha) / alpha, "
    "p = exp(logps / tokens)",
    loss=_loss,
    evidence="paper",
)
