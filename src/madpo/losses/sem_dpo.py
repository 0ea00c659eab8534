"""Sem-DPO: DPO weighted by how close the chosen response stays to the prompt's meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements

if TYPE_CHECKING:
    from torch import Tensor


class SemDpoConfig(MethodConfig):
    """Parameters of Sem-DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    alpha: Coefficient = Field(default=1.0, ge=0)
    """How fast the weight falls with the distance; 0 gives DPO. The paper's value could not be verified."""


def semantic_weight(semantic_distance: Tensor, *, alpha: float) -> Tensor:
    """exp(-alpha * semantic_distance).

    Args:
        semantic_distance: 1 - cosine similarity of the embeddings of prompt and chosen response, in [0, 2], [B]. Made
            for rewriting prompts; for chat embed a reference answer in place of the prompt.
        alpha: Rate; not negative.

    Returns:
        Weights in (0, 1] without gradient, [B]. Multiply the unreduced DPO loss.

    Source: Sem-DPO, arXiv:2507.20133.
    """
    return (-alpha * semantic_distance.detach()).exp()


def _loss(config: SemDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    weight = semantic_weight(batch.require("semantic_distance"), alpha=config.alpha)
    return LossOutput(per_pair=weight * dpo_loss(batch.log_ratio_diff, beta=config.beta), weight=weight)


SEM_DPO = Method(
    name="sem_dpo",
    config=SemDpoConfig,
    requires=Requirements(reference=True, semantic_distance=True),
    summary="DPO that discounts pairs whose chosen response has drifted from the meaning of its prompt.",
    source="Sem-DPO, arXiv:2507.20133",
    formula="exp(-alpha * semantic_distance) * softplus(-beta * log_ratio_diff)",
    loss=_loss,
    evidence="secondary",
)
