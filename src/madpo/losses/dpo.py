"""DPO, with optional label smoothing (cDPO), also without a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class DpoConfig(MethodConfig):
    """Parameters of DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose label is flipped."""
    reference_free: bool = False
    """Take the reference as uniform: log-probs stand where log-ratios would."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The reference, unless it is uniform."""
        return {"reference": not self.reference_free}


def dpo_loss(log_ratio_diff: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Per-pair DPO loss.

    With u = beta * log_ratio_diff:
        loss = (1 - label_smoothing) * softplus(-u) + label_smoothing * softplus(u)
             = softplus(-u) + label_smoothing * u

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).

    Returns:
        Losses [B], log(2) where the policy equals the reference.

    Source: Rafailov et al., arXiv:2305.18290, equation 7; smoothing: Mitchell, "A note on DPO with noisy preferences".
    """
    from torch.nn.functional import softplus

    implicit_margin = beta * log_ratio_diff
    return softplus(-implicit_margin) + label_smoothing * implicit_margin


def _loss(config: DpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    if config.reference_free:
        log_ratio_diff = batch.policy_chosen_logps - batch.policy_rejected_logps
    else:
        log_ratio_diff = batch.log_ratio_diff
    return unweighted(dpo_loss(log_ratio_diff, beta=config.beta, label_smoothing=config.label_smoothing))


DPO = Method(
    name="dpo",
    config=DpoConfig,
    requires=Requirements(reference=True),
    summary="Direct preference optimisation: fits the policy as an implicit Bradley-Terry reward model.",
    source="Rafailov et al., arXiv:2305.18290",
    formula="softplus(-beta * log_ratio_diff) + label_smoothing * beta * log_ratio_diff",
    loss=_loss,
)
