"""Accelerated preference optimisation: iterated DPO whose policy moves on in the direction it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import (
    Coefficient,
    LossBatch,
    LossContext,
    LossOutput,
    Method,
    MethodConfig,
    ReferenceUpdate,
    Requirements,
    Steps,
)
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class ApoAccelConfig(MethodConfig):
    """Parameters of accelerated preference optimisation."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    iteration_steps: Steps = Field(default=128, ge=1)
    """Optimizer steps of one iteration, after which the policy moves on and becomes the reference; ours."""
    alpha: float = Field(default=0.3, ge=0, lt=1)
    """How far it moves on, in lengths of the iteration's own way; 0 gives iterated DPO."""

    def reference_update(self) -> ReferenceUpdate | None:
        """Copy the policy after each iteration, moved on."""
        return ReferenceUpdate(every=self.iteration_steps, rate=1.0, extrapolation=self.alpha)


def extrapolate(policy: Tensor, previous: Tensor, *, alpha: float) -> Tensor:
    """The step between two iterations: policy + alpha * (policy - previous).

    In log-probs this is p(t+1) proportional to q(t+1) * (q(t+1) / q(t))^alpha, with q the policies as training left
    them. For a softmax of linear scores it is the same on parameters; adapters must be merged into their weights first,
    as it does not hold for the factors of a low-rank product.

    Args:
        policy: A parameter, or logits, at the end of this iteration.
        previous: The same at the end of the one before, not moved on; at the start of training after the first.
        alpha: Lengths to move on.

    Source: He et al., arXiv:2410.06293.
    """
    return policy + alpha * (policy - previous)


def _loss(config: ApoAccelConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(dpo_loss(batch.log_ratio_diff, beta=config.beta))


APO_ACCEL = Method(
    name="apo_accel",
    config=ApoAccelConfig,
    requires=Requirements(reference=True),
    summary="Accelerated preference optimisation: iterated DPO with momentum between iterations. Unrelated to anchored "
    "preference optimisation (`apo_zero`, `apo_down`).",
    source="He et al., arXiv:2410.06293",
    formula="softplus(-beta * log_ratio_diff); every `iteration_steps` steps "
    "policy <- policy + alpha * (policy - policy at the last update), then reference <- policy",
    loss=_loss,
    evidence="secondary",
)
