"""Stable preference optimisation: DPO that must not lose likelihood of the chosen responses. Rebuilt from the idea."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import token_nll, unweighted

if TYPE_CHECKING:
    from torch import Tensor


class XSpoConfig(MethodConfig):
    """Parameters of stable preference optimisation."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    penalty: Coefficient = Field(default=1.0, ge=0)
    """Weight of the chosen responses' negative log-likelihood per token above its bound (lambda); 0 leaves it out."""
    bound: Literal["reference", "best"] = "reference"
    """The reference's on the same responses, or the lowest of any batch so far, beginning with the reference's on the
    first; batches differ, so give that one some slack."""
    slack: Coefficient = Field(default=0.0, ge=0)
    """By how much it may exceed its bound, in nats per token."""
    positive_weight: Coefficient = Field(default=0.0, ge=0)
    """Weight, in implicit reward, of each chosen log-prob's fall below the reference (mu); 0 leaves it out."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The likelihood of the whole batch, if it is bounded."""
        bounded = self.penalty > 0
        return {
            "lengths": bounded,
            "global_batch": bounded,
            "policy_figures": bounded,
            "stateful": bounded and self.bound == "best",
        }


def likelihood_violation(nll: Tensor, bound: Tensor, *, slack: float) -> Tensor:
    """max(0, nll - bound - slack): how far the policy has lost the chosen responses.

    Args:
        nll: Of the chosen responses under the policy, in nats per token of the global batch.
        bound: What it should not exceed, such as the same under the reference.
        slack: Loss that is allowed.
    """
    return (nll - bound - slack).relu()


def positive_loss(chosen_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Fall of each chosen response below the reference, beta * max(0, -chosen_log_ratio) as in DPO-positive; [B]."""
    return beta * (-chosen_log_ratio).relu()


def _observe(config: XSpoConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {
        "chosen_logps": batch.policy_chosen_logps.detach(),
        "ref_chosen_logps": batch.require("ref_chosen_logps"),
        "chosen_tokens": batch.require("chosen_tokens"),
    }


def _loss(config: XSpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    fall = positive_loss(batch.chosen_log_ratio, beta=config.beta)
    per_pair = dpo_loss(batch.log_ratio_diff, beta=config.beta) + config.positive_weight * fall
    output = unweighted(per_pair, metrics={"spo/fallen_ratio": (fall.detach() > 0).to(fall.dtype)})
    return _bounded(config, batch, context, output) if config.penalty > 0 else output


def _bounded(config: XSpoConfig, batch: LossBatch, context: LossContext, output: LossOutput) -> LossOutput:
    stats = context.stats
    tokens = stats["chosen_tokens"].sum()
    nll = token_nll(stats["chosen_logps"], tokens)
    bound = token_nll(stats["ref_chosen_logps"], tokens)
    state = None
    if config.bound == "best":
        bound = context.state.get("best_nll", bound)
        state = {"best_nll": nll.minimum(bound)} if context.training else None
    # The micro-batches' shares add up to the violation, and their gradients to its gradient.
    own_nll = token_nll(batch.policy_chosen_logps, tokens)
    own_bound = (bound + config.slack) * batch.require("chosen_tokens").sum() / tokens
    violated = likelihood_violation(nll, bound, slack=config.slack) > 0
    return replace(output, aux={"likelihood": config.penalty * (own_nll - own_bound) * violated}, state=state)


X_SPO = Method(
    name="x_spo",
    config=XSpoConfig,
    requires=Requirements(reference=True, lengths=True, global_batch=True, policy_figures=True),
    summary="Stable preference optimisation: DPO with a penalty once the chosen responses become less likely than "
    "under the reference.",
    source="arXiv:2507.07723 (idea)",
    formula="softplus(-beta * log_ratio_diff) + penalty * max(0, NLL(chosen) - NLL_ref(chosen) - slack) "
    "+ positive_weight * beta * max(0, -chosen_log_ratio)",
    loss=_loss,
    observe=_observe,
    evidence="rebuilt",
)
