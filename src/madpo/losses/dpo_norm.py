"""DPO on log-ratios averaged over tokens."""

from __future__ import annotations

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import average_logps, unweighted


class DpoNormConfig(MethodConfig):
    """Parameters of length-normalised DPO."""

    beta: Coefficient = Field(default=5.0, gt=0)
    """Strength of the pull to the reference: implicit reward per nat per token, so larger than DPO's by about the
    length of a response."""


def _loss(config: DpoNormConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen = average_logps(batch.chosen_log_ratio, batch.require("chosen_tokens"))
    rejected = average_logps(batch.rejected_log_ratio, batch.require("rejected_tokens"))
    return unweighted(dpo_loss(chosen - rejected, beta=config.beta))


DPO_NORM = Method(
    name="dpo_norm",
    config=DpoNormConfig,
    requires=Requirements(reference=True, lengths=True),
    summary="Length-normalised DPO: averages log-ratios over tokens, so length itself earns nothing.",
    source="Lambert et al., arXiv:2411.15124",
    formula="softplus(-beta * (chosen_log_ratio / chosen_tokens - rejected_log_ratio / rejected_tokens))",
    loss=_loss,
)
