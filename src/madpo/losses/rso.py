"""RSO: statistical rejection sampling optimisation, its loss on pairs and its rule of sampling them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.hinge import hinge_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class RsoConfig(MethodConfig):
    """Parameters of RSO's loss; the pairs are sampled beforehand, see `rso_accept`."""

    beta: Coefficient = Field(default=0.05, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio (gamma in the paper)."""
    link: Literal["logistic", "hinge"] = "logistic"
    """"sigmoid-norm", which is DPO's, or "hinge-norm"."""


def rso_accept(rewards: Tensor, *, temperature: float) -> Tensor:
    """Probability of accepting each candidate response of a prompt, exp((reward - highest reward) / temperature).

    Accepted candidates of the supervised policy are samples of the policy that is optimal for these rewards at
    beta = temperature. Draw until enough are accepted, each time among the ones left and with their highest reward;
    then label pairs of them by the reward model.

    Args:
        rewards: Of the candidates not accepted yet, in reward-model logits, [..., K].
        temperature: 0.5 in the paper, as far as we remember; towards 0 only the best is accepted, towards infinity all.

    Returns:
        Probabilities [..., K]; 1 for the best.

    Source: Liu et al., arXiv:2309.06657.
    """
    return ((rewards - rewards.amax(dim=-1, keepdim=True)) / temperature).exp()


def _loss(config: RsoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    link = dpo_loss if config.link == "logistic" else hinge_loss
    return unweighted(link(batch.log_ratio_diff, beta=config.beta))


RSO = Method(
    name="rso",
    config=RsoConfig,
    requires=Requirements(reference=True),
    summary="Rejection sampling optimisation: DPO or hinge loss, for pairs sampled as if from the optimal policy.",
    source="Liu et al., arXiv:2309.06657",
    formula="softplus(-beta * log_ratio_diff) or max(0, 1 - beta * log_ratio_diff)",
    loss=_loss,
    evidence="paper",
)
