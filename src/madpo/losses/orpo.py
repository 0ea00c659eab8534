"""ORPO: supervised training with an odds ratio that pushes the rejected response away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import average_logps, log1mexp, observe_chosen_tokens, unweighted, with_chosen_nll

if TYPE_CHECKING:
    from torch import Tensor

# Odds are infinite at probability 1; nats per token.
_MAX_AVERAGE_LOGP = -1e-7


class OrpoConfig(MethodConfig):
    """Parameters of ORPO."""

    lam: Coefficient = Field(default=0.1, gt=0)
    """Weight of the odds-ratio term beside the likelihood (lambda in the paper, beta in TRL)."""


def log_odds_ratio(chosen_average_logps: Tensor, rejected_average_logps: Tensor) -> Tensor:
    """Log of the chosen response's odds over those of the rejected one.

    The odds of a response are p / (1 - p), p the geometric mean of its token probabilities.

    Args:
        chosen_average_logps: Log-prob per token, in nats, [B], with gradient; at most -1e-7 is taken.
        rejected_average_logps: Likewise.

    Returns:
        Log odds ratios [B].

    Source: Hong et al., arXiv:2403.07691.
    """
    chosen = chosen_average_logps.clamp(max=_MAX_AVERAGE_LOGP)
    rejected = rejected_average_logps.clamp(max=_MAX_AVERAGE_LOGP)
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def _loss(config: OrpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    from torch.nn.functional import softplus

    log_odds = log_odds_ratio(
        average_logps(batch.policy_chosen_logps, batch.require("chosen_tokens")),
        average_logps(batch.policy_rejected_logps, batch.require("rejected_tokens")),
    )
    per_pair, aux = with_chosen_nll(config.lam * softplus(-log_odds), batch, context, weight=1.0)
    return unweighted(per_pair, aux=aux, metrics={"orpo/log_odds": log_odds.detach()})


ORPO = Method(
    name="orpo",
    config=OrpoConfig,
    requires=Requirements(lengths=True, global_batch=True),
    summary="Odds-ratio preference optimisation: one stage from a base model, without a reference. The likelihood "
    "is that of the chosen response alone; TRL counts the prompt in.",
    source="Hong et al., arXiv:2403.07691",
    formula="NLL(chosen) + lam * softplus(-log(odds(chosen) / odds(rejected))), odds = p / (1 - p), "
    "p = exp(logps / tokens)",
    loss=_loss,
    observe=observe_chosen_tokens,
)
