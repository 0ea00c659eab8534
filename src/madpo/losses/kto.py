"""KTO: Kahneman-Tversky optimisation, each response against a common point of reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class KtoConfig(MethodConfig):
    """Parameters of KTO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    desirable_weight: Coefficient = Field(default=1.0, gt=0)
    """Weight of chosen responses (lambda_D). The paper advises a ratio of the two weights within 4/3 where, as in
    pairs, both kinds are as many."""
    undesirable_weight: Coefficient = Field(default=1.0, gt=0)
    """Weight of rejected responses (lambda_U)."""


def kto_reference_point(mismatched_log_ratio: Tensor) -> Tensor:
    """max(0, mean log-ratio of mismatched responses), an estimate of the policy's divergence from the reference.

    Args:
        mismatched_log_ratio: Policy minus reference log-prob of responses under the prompts of other pairs, of the
            global batch; in nats, [N].

    Returns:
        A scalar without gradient, in nats.

    Source: Ethayarajh et al., arXiv:2402.01306, section 4.
    """
    return mismatched_log_ratio.detach().mean().relu()


def kto_terms(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, reference_point: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Losses of chosen (desirable) and rejected (undesirable) responses.

    With z0 = reference_point:
        desirable:    1 - sigmoid(beta * (chosen_log_ratio - z0))
        undesirable:  1 - sigmoid(beta * (z0 - rejected_log_ratio))

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        reference_point: Of `kto_reference_point`.
        beta: Implicit reward per nat; positive.

    Returns:
        Two tensors [B] within (0, 1), unweighted.

    Source: Ethayarajh et al., arXiv:2402.01306, equation 8.
    """
    desirable = (-beta * (chosen_log_ratio - reference_point)).sigmoid()
    return desirable, (-beta * (reference_point - rejected_log_ratio)).sigmoid()


def _observe(config: KtoConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    log_ratio = batch.require("mismatched_logps") - batch.require("ref_mismatched_logps")
    return {"mismatched_log_ratio": log_ratio.detach()}


def _loss(config: KtoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    point = kto_reference_point(context.stats["mismatched_log_ratio"])
    desirable, undesirable = kto_terms(batch.chosen_log_ratio, batch.rejected_log_ratio, point, beta=config.beta)
    # The mean over the 2N responses is the mean over N pairs of half of both.
    per_pair = 0.5 * (config.desirable_weight * desirable + config.undesirable_weight * undesirable)
    return unweighted(per_pair, metrics={"kto/reference_point": point.expand(len(per_pair))})


KTO = Method(
    name="kto",
    config=KtoConfig,
    requires=Requirements(reference=True, mismatched=True, global_batch=True),
    summary="Kahneman-Tversky optimisation: raises chosen and lowers rejected responses separately, with a utility "
    "that saturates on both sides.",
    source="Ethayarajh et al., arXiv:2402.01306",
    formula="(desirable_weight * sigmoid(-beta * (chosen_log_ratio - z0)) "
    "+ undesirable_weight * sigmoid(-beta * (z0 - rejected_log_ratio))) / 2, z0 = max(0, mean mismatched log-ratio)",
    loss=_loss,
    observe=_observe,
)
