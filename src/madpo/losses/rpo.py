"""DPO with the likelihood of the chosen response mixed in: RPO and iterative reasoning preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import SftReduction, observe_chosen_tokens, sft_requirements, unweighted, with_chosen_nll


class RpoConfig(MethodConfig):
    """Parameters of RPO.

    The defaults are those of RPO; iterative reasoning preference optimisation has `sft_weight` 1, `sft_reduction`
    `sequence` and `beta` 0.1.
    """

    beta: Coefficient = Field(default=0.01, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    sft_weight: Coefficient = Field(default=0.005, ge=0)
    """Weight of the chosen responses' negative log-likelihood (eta in RPO, alpha in the other); 0 gives DPO."""
    sft_reduction: SftReduction = "token"
    """Average it over all chosen tokens of the batch, or over each response's tokens and then over pairs
    (`sequence`)."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Token counts, of the whole batch for the token average."""
        return sft_requirements(self.sft_weight, self.sft_reduction)


def _loss(config: RpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    per_pair = dpo_loss(batch.log_ratio_diff, beta=config.beta)
    per_pair, aux = with_chosen_nll(per_pair, batch, context, weight=config.sft_weight, reduction=config.sft_reduction)
    return unweighted(per_pair, aux=aux)


RPO = Method(
    name="rpo",
    config=RpoConfig,
    requires=Requirements(reference=True),
    summary="DPO plus the chosen responses' negative log-likelihood, which keeps their probability from falling.",
    source="Liu et al., arXiv:2405.16436; Pang et al., arXiv:2404.19733",
    formula="softplus(-beta * log_ratio_diff) + sft_weight * NLL(chosen)",
    loss=_loss,
    observe=observe_chosen_tokens,
)
