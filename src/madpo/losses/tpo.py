"""TPO and TPO-L: triple preference optimisation, with a gold response beside the pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.simpo import simpo_loss
from madpo.losses.terms import average_logps, token_nll, unweighted

if TYPE_CHECKING:
    from torch import Tensor


class _GoldConfig(MethodConfig):
    """The gold term both have."""

    sft_weight: Coefficient = Field(default=1.0, ge=0)
    """Weight of the gold responses' negative log-likelihood, averaged over all gold tokens of the batch (alpha in the
    paper); at 0 no gold response is needed. The published code has 1 in its scripts, 0.05 in a default."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Gold responses, and the number of their tokens in the whole batch."""
        return {"gold": self.sft_weight > 0, "global_batch": self.sft_weight > 0}


class TpoConfig(_GoldConfig):
    """Parameters of TPO."""

    beta: Coefficient = Field(default=0.01, gt=0)
    """Reward per nat of log-prob; there is no reference to stay close to."""


class TpoLConfig(_GoldConfig):
    """Parameters of TPO-L."""

    beta: Coefficient = Field(default=2.0, gt=0)
    """Reward per nat per token. Published: 2 for Mistral, 0.01 for Llama 3."""
    gamma: Coefficient = Field(default=1.6, ge=0)
    """Target margin of the reward. Published: 0.5 to 10, by the amount of data."""


def _observe(config: _GoldConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {"gold_tokens": batch.require("gold_tokens")}


def _with_gold(per_pair: Tensor, config: _GoldConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    if config.sft_weight == 0:
        return unweighted(per_pair)
    nll = token_nll(batch.require("gold_logps"), context.stats["gold_tokens"].sum())
    return unweighted(per_pair, aux={"gold_nll": config.sft_weight * nll})


def _tpo_loss(config: TpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    per_pair = dpo_loss(batch.policy_chosen_logps - batch.policy_rejected_logps, beta=config.beta)
    return _with_gold(per_pair, config, batch, context)


def _tpo_l_loss(config: TpoLConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen = average_logps(batch.policy_chosen_logps, batch.require("chosen_tokens"))
    rejected = average_logps(batch.policy_rejected_logps, batch.require("rejected_tokens"))
    per_pair = simpo_loss(chosen - rejected, beta=config.beta, gamma_beta_ratio=config.gamma / config.beta)
    return _with_gold(per_pair, config, batch, context)


TPO = Method(
    name="tpo",
    config=TpoConfig,
    requires=Requirements(gold=True, global_batch=True),
    summary="Triple preference optimisation: one stage that learns a gold response and the preference of a pair; no "
    "reference model.",
    source="Saeidi et al., arXiv:2405.16681",
    formula="softplus(-beta * (chosen_logps - rejected_logps)) + sft_weight * NLL(gold)",
    loss=_tpo_loss,
    observe=_observe,
)

TPO_L = Method(
    name="tpo_l",
    config=TpoLConfig,
    requires=Requirements(lengths=True, gold=True, global_batch=True),
    summary="TPO with length-normalised log-probs and a target margin.",
    source="Saeidi et al., arXiv:2405.16681",
    formula="softplus(-(beta * (chosen_logps / chosen_tokens - rejected_logps / rejected_tokens) - gamma)) "
    "+ sft_weight * NLL(gold)",
    loss=_tpo_l_loss,
    observe=_observe,
)
