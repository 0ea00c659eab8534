"""Uncertainty-penalised DPO: pairs whose reward is uncertain train less. Derived from the paper's idea."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class UpdpoConfig(MethodConfig):
    """Parameters of uncertainty-penalised DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    scheme: Literal["lcb", "scale", "weight"] = "lcb"
    """Take `k` standard deviations off both rewards (lower confidence bound), shrink the implicit margin, or shrink the
    pair's loss."""
    k: Coefficient = Field(default=1.0, ge=0)
    """Standard deviations taken off, with scheme `lcb`; 0 gives DPO."""
    temperature: Coefficient = Field(default=1.0, gt=0)
    """Uncertainty of a pair, in reward-model logits, that shrinks to 1 / e, with the schemes `scale` and `weight`."""


def pessimistic_offset(chosen_uncertainty: Tensor, rejected_uncertainty: Tensor, *, k: float) -> Tensor:
    """What the lower confidence bound adds to the implicit margin: k * (chosen_uncertainty - rejected_uncertainty).

    With rewards r - k * U in place of r, the policy of the same preference has an implicit margin smaller by this.

    Args:
        chosen_uncertainty: U of the chosen response, standard deviation of its reward, in reward-model logits, [B].
        rejected_uncertainty: Likewise.
        k: Standard deviations to take off.

    Source: our derivation from Houliston et al., arXiv:2410.20187; the paper's exact forms could not be verified.
    """
    return k * (chosen_uncertainty - rejected_uncertainty).detach()


def certainty(chosen_uncertainty: Tensor, rejected_uncertainty: Tensor, *, temperature: float) -> Tensor:
    """exp(-U / temperature) in (0, 1], U = sqrt(chosen_uncertainty^2 + rejected_uncertainty^2), that of the margin.

    Args:
        chosen_uncertainty: Standard deviation of the chosen reward, in reward-model logits, [B].
        rejected_uncertainty: Likewise.
        temperature: In reward-model logits; positive.
    """
    import torch

    return (-torch.hypot(chosen_uncertainty, rejected_uncertainty).detach() / temperature).exp()


def _loss(config: UpdpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    uncertainties = batch.require("chosen_uncertainty"), batch.require("rejected_uncertainty")
    implicit_margin = config.beta * batch.log_ratio_diff
    if config.scheme == "lcb":
        return unweighted(dpo_loss(implicit_margin + pessimistic_offset(*uncertainties, k=config.k), beta=1.0))
    trust = certainty(*uncertainties, temperature=config.temperature)
    if config.scheme == "scale":
        return unweighted(dpo_loss(implicit_margin * trust, beta=1.0), metrics={"updpo/certainty": trust})
    return LossOutput(per_pair=trust * dpo_loss(implicit_margin, beta=1.0), weight=trust)


UPDPO = Method(
    name="updpo",
    config=UpdpoConfig,
    requires=Requirements(reference=True, uncertainty=True),
    summary="Uncertainty-penalised DPO: pairs whose rewards an ensemble disagrees on train less.",
    source="Houliston et al., arXiv:2410.20187 (idea)",
    formula="lcb: softplus(-(u + k * (chosen_uncertainty - rejected_uncertainty))); scale: softplus(-u * t); "
    "weight: t * softplus(-u); u = beta * log_ratio_diff, "
    "t = exp(-sqrt(chosen_uncertainty^2 + rejected_uncertainty^2) / temperature)",
    loss=_loss,
    evidence="rebuilt",
)
