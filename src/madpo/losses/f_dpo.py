"""f-DPO: DPO with another divergence from the reference than reverse KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import max_exponent, unweighted

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


class FDpoConfig(MethodConfig):
    """Parameters of f-DPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per unit of score."""
    divergence: Divergence = "forward_kl"
    """What keeps the policy near the reference; `reverse_kl` gives DPO."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Order of the `alpha` divergence: 0 is forward KL, 1 reverse KL."""


def f_divergence_score(log_ratio: Tensor, divergence: Divergence, *, alpha: float = 0.5) -> Tensor:
    """Implicit reward of a response, up to a constant of the prompt, when the policy is held by an f-divergence.

    With rho = log_ratio:
        reverse_kl  rho
        forward_kl  -exp(-rho)
        js          log sigmoid(rho)
        alpha       (exp((alpha - 1) * rho) - 1) / (alpha - 1), and rho for alpha = 1
    Exponents end at 80 (11 in float16), where the score is flat.

    Args:
        log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        divergence: Which one.
        alpha: Of the alpha divergence, in [0, 1].

    Returns:
        Scores, increasing in `log_ratio`, shape and dtype of it.

    Source: Wang et al., arXiv:2309.16240. Constants cancel between two responses and are chosen for accuracy.
    """
    from torch.nn.functional import logsigmoid

    limit = max_exponent(log_ratio)
    if divergence == "js":
        return logsigmoid(log_ratio)
    if divergence == "forward_kl":
        return -(-log_ratio).clamp(max=limit).exp()
    if divergence == "alpha" and alpha != 1:
        return ((alpha - 1) * log_ratio).clamp(max=limit).expm1() / (alpha - 1)
    return log_ratio


def _loss(config: FDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen = f_divergence_score(batch.chosen_log_ratio, config.divergence, alpha=config.alpha)
    rejected = f_divergence_score(batch.rejected_log_ratio, config.divergence, alpha=config.alpha)
    return unweighted(dpo_loss(chosen - rejected, beta=config.beta))


F_DPO = Method(
    name="f_dpo",
    config=FDpoConfig,
    requires=Requirements(reference=True),
    summary="DPO under another f-divergence: forward KL, Jensen-Shannon or alpha in place of reverse KL.",
    source="Wang et al., arXiv:2309.16240",
    formula="softplus(-beta * (score(chosen_log_ratio) - score(rejected_log_ratio))); score(rho) = rho, -exp(-rho), "
    "log sigmoid(rho) or (exp((alpha - 1) * rho) - 1) / (alpha - 1)",
    loss=_loss,
)
