"""CPO: contrastive preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import observe_chosen_tokens, sft_requirements, unweighted, with_chosen_nll


class CpoConfig(MethodConfig):
    """Parameters of CPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Reward per nat of log-prob; there is no reference to stay close to."""
    sft_weight: Coefficient = Field(default=1.0, ge=0)
    """Weight of the chosen responses' negative log-likelihood, averaged over all chosen tokens of the batch."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The number of chosen tokens in the whole batch, for the likelihood."""
        return sft_requirements(self.sft_weight)


def _loss(config: CpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    per_pair = dpo_loss(batch.policy_chosen_logps - batch.policy_rejected_logps, beta=config.beta)
    per_pair, aux = with_chosen_nll(per_pair, batch, context, weight=config.sft_weight)
    return unweighted(per_pair, aux=aux)


CPO = Method(
    name="cpo",
    config=CpoConfig,
    requires=Requirements(),
    summary="Contrastive preference optimisation: DPO against a uniform reference, held by the chosen responses' "
    "likelihood.",
    source="Xu et al., arXiv:2401.08417",
    formula="softplus(-beta * (chosen_logps - rejected_logps)) + sft_weight * NLL(chosen)",
    loss=_loss,
    observe=observe_chosen_tokens,
)
