"""WPO: DPO weighted by how likely the policy itself is to have written the pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements

if TYPE_CHECKING:
    from torch import Tensor

# No real vocabulary comes near; it keeps weighted losses finite in float32.
_MAX_LOG_WEIGHT = 30.0


class WpoConfig(MethodConfig):
    """Parameters of WPO."""

    beta: Coefficient = Field(default=0.01, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    clip_weight: bool = False
    """Cap the pair's weight at 1, as some published code does: text likelier than the policy's own samples then
    counts no more than those."""


def sequence_log_weight(token_logps: Tensor, log_sum_p2: Tensor, token_mask: Tensor) -> Tensor:
    """How typical responses are of the policy, in nats per token.

    The mean over a response's tokens of log p(token) - log sum_v p(v)^2: 0 where every next token is equally likely,
    at most 0 on average over the policy's own samples.

    Args:
        token_logps: Log-probs of the tokens, [B, T]; no gradient is taken.
        log_sum_p2: Log of the sum over the vocabulary of squared probabilities, [B, T].
        token_mask: True on response tokens, [B, T].

    Returns:
        Log-weights [B] without gradient.

    Source: Zhou et al., arXiv:2406.11827.
    """
    terms = (token_logps - log_sum_p2).detach().where(token_mask, 0.0)
    return terms.sum(dim=1) / token_mask.sum(dim=1).clamp(min=1)


def wpo_weight(chosen_log_weight: Tensor, rejected_log_weight: Tensor, *, clip_weight: bool = False) -> Tensor:
    """Weights of pairs, the product of their responses' weights, [B]."""
    return (chosen_log_weight + rejected_log_weight).clamp(max=0.0 if clip_weight else _MAX_LOG_WEIGHT).exp()


def _loss(config: WpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = (
        sequence_log_weight(
            batch.require(f"{side}_token_logps"),
            batch.require(f"{side}_log_sum_p2"),
            batch.require(f"{side}_token_mask"),
        )
        for side in ("chosen", "rejected")
    )
    weight = wpo_weight(chosen, rejected, clip_weight=config.clip_weight)
    return LossOutput(
        per_pair=weight * dpo_loss(batch.log_ratio_diff, beta=config.beta),
        weight=weight,
        metrics={"wpo/chosen_log_weight": chosen, "wpo/rejected_log_weight": rejected},
    )


WPO = Method(
    name="wpo",
    config=WpoConfig,
    requires=Requirements(reference=True, token_logps=True, vocabulary=True),
    summary="Weighted preference optimisation: makes off-policy pairs count as if sampled from the policy.",
    source="Zhou et al., arXiv:2406.11827",
    formula="w(chosen) * w(rejected) * softplus(-beta * log_ratio_diff), "
    "w = exp(mean over tokens of log p(token) - log sum_v p(v)^2)",
    loss=_loss,
)
