"""TR-DPO: DPO whose reference follows the policy."""

from __future__ import annotations

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


class TrDpoConfig(MethodConfig):
    """Parameters of TR-DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    alpha: float = Field(default=0.6, ge=0, le=1)
    """Share of the policy in an updated reference: 1 copies the policy, 0 keeps the reference fixed and gives DPO."""
    every: Steps = Field(default=512, ge=1)
    """Optimizer steps from one update to the next (tau in the paper)."""

    def reference_update(self) -> ReferenceUpdate | None:
        """Mix the policy into the reference."""
        return ReferenceUpdate(every=self.every, rate=self.alpha) if self.alpha > 0 else None


def _loss(config: TrDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(dpo_loss(batch.log_ratio_diff, beta=config.beta))


TR_DPO = Method(
    name="tr_dpo",
    config=TrDpoConfig,
    requires=Requirements(reference=True),
    summary="Trust-region DPO: moves the reference towards the policy during training, against overoptimisation.",
    source="Gorbatovski et al., arXiv:2404.09656",
    formula="softplus(-beta * log_ratio_diff); after each `every` steps "
    "reference <- alpha * policy + (1 - alpha) * reference",
    loss=_loss,
)
