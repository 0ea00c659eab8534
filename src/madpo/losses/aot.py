"""AOT: alignment by optimal transport, which compares the distributions of a batch instead of its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class AotConfig(MethodConfig):
    """Parameters of AOT."""

    beta: Coefficient = Field(default=0.01, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""


def same_rank(values: Tensor, others: Tensor) -> Tensor:
    """For each value the entry of `others` that has its rank: the partner optimal transport moves it to.

    Args:
        values: [N].
        others: [N].

    Returns:
        [N], without gradient. Equal values are ranked in their order.
    """
    ranks = values.detach().argsort(stable=True).argsort()
    return others.detach().sort().values[ranks]


def aot_terms(higher: Tensor, lower: Tensor, *, beta: float) -> Tensor:
    """softplus(-beta * (sort(higher) - sort(lower))), a whole batch's loss by rank.

    Args:
        higher: Figures that should stochastically dominate, in nats, [N], with gradient: the policy's log-prob
            differences of pairs, or with unpaired data the log-ratios of chosen responses.
        lower: Those to be dominated, [N]: the reference's differences, or the log-ratios of rejected responses.
        beta: Implicit reward per nat; positive.

    Returns:
        Losses of ranks, lowest first, [N].

    Source: Melnyk et al., arXiv:2406.05882.
    """
    return dpo_loss(higher.sort().values - lower.sort().values, beta=beta)


def _observe_paired(config: AotConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {
        "policy": (batch.policy_chosen_logps - batch.policy_rejected_logps).detach(),
        "reference": batch.require("ref_chosen_logps") - batch.require("ref_rejected_logps"),
    }


def _paired(config: AotConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    partner = context.own(same_rank(context.stats["policy"], context.stats["reference"]))
    policy = batch.policy_chosen_logps - batch.policy_rejected_logps
    return unweighted(dpo_loss(policy - partner, beta=config.beta))


def _observe_unpaired(config: AotConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {"chosen": batch.chosen_log_ratio.detach(), "rejected": batch.rejected_log_ratio.detach()}


def _unpaired(config: AotConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    """Each term belongs to two pairs: both bring half of its value, and the gradient of their own side of it."""
    chosen, rejected = context.stats["chosen"], context.stats["rejected"]
    rejected_partner = context.own(same_rank(chosen, rejected))
    chosen_partner = context.own(same_rank(rejected, chosen))

    def both_terms(chosen: Tensor, rejected: Tensor) -> Tensor:
        own_chosen = dpo_loss(chosen - rejected_partner, beta=config.beta)
        return own_chosen + dpo_loss(chosen_partner - rejected, beta=config.beta)

    figures = both_terms(context.own(chosen), context.own(rejected))
    return unweighted(both_terms(batch.chosen_log_ratio, batch.rejected_log_ratio) - 0.5 * figures)


AOT = Method(
    name="aot",
    config=AotConfig,
    requires=Requirements(reference=True, global_batch=True, policy_figures=True),
    summary="Alignment by optimal transport: over the batch as a whole, the policy's lead of chosen over rejected "
    "shall stochastically dominate the reference's.",
    source="Melnyk et al., arXiv:2406.05882",
    formula="softplus(-beta * (sort(policy_chosen_logps - policy_rejected_logps) "
    "- sort(ref_chosen_logps - ref_rejected_logps)))",
    loss=_paired,
    observe=_observe_paired,
)

AOT_UNPAIRED = Method(
    name="aot_unpaired",
    config=AotConfig,
    requires=Requirements(reference=True, global_batch=True, policy_figures=True),
    summary="Alignment by optimal transport on unpaired responses: the chosen log-ratios of the batch shall "
    "stochastically dominate the rejected ones.",
    source="Melnyk et al., arXiv:2406.05882",
    formula="softplus(-beta * (sort(chosen_log_ratio) - sort(rejected_log_ratio)))",
    loss=_unpaired,
    observe=_observe_unpaired,
)
