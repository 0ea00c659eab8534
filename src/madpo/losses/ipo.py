"""IPO: squared loss to a fixed margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import average_logps, unweighted

if TYPE_CHECKING:
    from torch import Tensor


class IpoConfig(MethodConfig):
    """Parameters of IPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference (tau in the paper): the target margin is 1 / (2 * beta) nats."""
    average_log_prob: bool = True
    """Average log-ratios over tokens, as TRL does (the authors confirmed it); false sums them, as the MADPO and the
    first DPO code do. At the same beta the two ask for very different policies: the target is in nats per token, or
    in nats of the whole response."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Lengths to average over."""
        return {"lengths": self.average_log_prob}


def ipo_loss(log_ratio_diff: Tensor, *, beta: float) -> Tensor:
    """Per-pair IPO loss, (log_ratio_diff - 1 / (2 * beta))^2.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected, summed or averaged over tokens; in nats,
            [B], with gradient.
        beta: Inverse of twice the target margin; positive.

    Returns:
        Losses [B], 0 at the target.

    Source: Azar et al., arXiv:2310.12036, equation 17.
    """
    return (log_ratio_diff - 1 / (2 * beta)).square()


def _loss(config: IpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = batch.chosen_log_ratio, batch.rejected_log_ratio
    if config.average_log_prob:
        chosen = average_logps(chosen, batch.require("chosen_tokens"))
        rejected = average_logps(rejected, batch.require("rejected_tokens"))
    return unweighted(ipo_loss(chosen - rejected, beta=config.beta))


IPO = Method(
    name="ipo",
    config=IpoConfig,
    requires=Requirements(reference=True),
    summary="Identity preference optimisation: pulls every pair to the same finite margin, so certain labels cannot "
    "drive the policy arbitrarily far.",
    source="Azar et al., arXiv:2310.12036",
    formula="(d - 1 / (2 * beta))^2, d = log_ratio_diff, each log-ratio averaged over its tokens",
    loss=_loss,
)
