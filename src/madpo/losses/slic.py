"""SLiC-HF: sequence likelihood calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class SlicConfig(MethodConfig):
    """Parameters of SLiC-HF."""

    delta: Coefficient = Field(default=1.0, gt=0)
    """Margin at which a pair is done, in nats."""
    sft_weight: Coefficient = Field(default=0.1, ge=0)
    """Weight of the target's negative log-likelihood, summed over its tokens (lambda in the paper, which tunes it)."""
    sft_target: Literal["chosen", "gold"] = "chosen"
    """Whose likelihood holds the policy: the better response of the pair, or a gold response beside it."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Gold responses, when they are the target."""
        return {"gold": self.sft_weight > 0 and self.sft_target == "gold"}


def slic_loss(logp_diff: Tensor, *, delta: float) -> Tensor:
    """Per-pair rank calibration loss, max(0, delta - logp_diff).

    Args:
        logp_diff: Log-prob of the policy, chosen minus rejected; in nats, [B], with gradient.
        delta: Margin, in nats; positive.

    Returns:
        Losses [B].

    Source: Zhao et al., arXiv:2305.10425, equation 1, first term.
    """
    return (delta - logp_diff).relu()


def _loss(config: SlicConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    per_pair = slic_loss(batch.policy_chosen_logps - batch.policy_rejected_logps, delta=config.delta)
    active = (per_pair > 0).to(per_pair.dtype)
    if config.sft_weight > 0:
        gold = config.sft_target == "gold"
        target = batch.require("gold_logps") if gold else batch.policy_chosen_logps
        per_pair = per_pair - config.sft_weight * target
    return unweighted(per_pair, metrics={"slic/active_ratio": active})


SLIC = Method(
    name="slic",
    config=SlicConfig,
    requires=Requirements(),
    summary="Sequence likelihood calibration: a hinge on summed log-probs, held by the likelihood of a target; no "
    "reference model.",
    source="Zhao et al., arXiv:2305.10425",
    formula="max(0, delta - (chosen_logps - rejected_logps)) - sft_weight * target_logps",
    loss=_loss,
    evidence="paper",
)
