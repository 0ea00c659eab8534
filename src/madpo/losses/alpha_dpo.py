"""alpha-DPO: SimPO with a margin per pair, from how far the policy has moved on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.moments import running_moments
from madpo.losses.terms import average_logps, unweighted

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["code", "paper"]


class AlphaDpoConfig(MethodConfig):
    """Parameters of alpha-DPO; the defaults are the authors' for Llama-3."""

    beta: Coefficient = Field(default=2.5, gt=0)
    """Implicit reward per nat of (average) log-prob."""
    gamma_beta_ratio: Coefficient = Field(default=0.6, ge=0)
    """Margin every pair is asked for, in nats of (average) log-prob: gamma / beta."""
    alpha: Coefficient = Field(default=0.2, ge=0)
    """Change of a pair's margin per standard deviation of its gap; 0 gives SimPO."""
    form: Form = "code"
    """The authors' code adds alpha * z to the margin before beta multiplies it; the paper adds it after, so that the
    same alpha acts 1 / beta times as strongly."""
    average_log_prob: bool = True
    """Average log-probs over tokens; false sums them."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the past in the running mean and standard deviation of the gap."""
    bias_correction: bool = True
    """Correct the running statistics for their start at 0. Without, as in the authors' code, z is about ten times too
    large at the first step."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Lengths to average over."""
        return {"lengths": self.average_log_prob}


def alpha_dpo_loss(
    logp_diff: Tensor, z: Tensor, *, beta: float, gamma_beta_ratio: float, alpha: float, form: Form = "code"
) -> Tensor:
    """Per-pair alpha-DPO loss.

    With s = logp_diff and g = gamma_beta_ratio:
        code:   loss = softplus(-beta * (s - (g + alpha * z)))
        paper:  loss = softplus(-(beta * (s - g) - alpha * z))

    Args:
        logp_diff: Policy log-prob, chosen minus rejected, each averaged over its tokens; in nats, [B], with gradient.
        z: Standardised policy-minus-reference gap of each pair, [B]; no gradient is taken.
        beta: Implicit reward per nat; positive.
        gamma_beta_ratio: Margin of a pair with z = 0, in nats.
        alpha: Effect of z; 0 gives SimPO.
        form: Which of the two.

    Returns:
        Losses [B].

    Source: Wu et al., arXiv:2410.10148, and the authors' published code.
    """
    from torch.nn.functional import softplus

    per_reward = 1.0 if form == "code" else 1 / beta
    margin = gamma_beta_ratio + alpha * per_reward * z.detach()
    return softplus(-beta * (logp_diff - margin))


def _diff(config: AlphaDpoConfig, batch: LossBatch, chosen: Tensor, rejected: Tensor) -> Tensor:
    if not config.average_log_prob:
        return chosen - rejected
    chosen = average_logps(chosen, batch.require("chosen_tokens"))
    return chosen - average_logps(rejected, batch.require("rejected_tokens"))


def _observe(config: AlphaDpoConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {"gap": _diff(config, batch, batch.chosen_log_ratio.detach(), batch.rejected_log_ratio.detach())}


def _loss(config: AlphaDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    logp_diff = _diff(config, batch, batch.policy_chosen_logps, batch.policy_rejected_logps)
    moments = running_moments(
        context.stats["gap"],
        context.state,
        momentum=config.momentum,
        bias_correction=config.bias_correction,
        training=context.training,
    )
    z = ((context.own(context.stats["gap"]) - moments.mean) / moments.std).to(logp_diff.dtype)
    per_pair = alpha_dpo_loss(
        logp_diff,
        z,
        beta=config.beta,
        gamma_beta_ratio=config.gamma_beta_ratio,
        alpha=config.alpha,
        form=config.form,
    )
    output = unweighted(per_pair, metrics={"alpha_dpo/z": z})
    return replace(output, state=moments.state) if context.training else output


ALPHA_DPO = Method(
    name="alpha_dpo",
    config=AlphaDpoConfig,
    requires=Requirements(reference=True, global_batch=True, policy_figures=True, stateful=True),
    summary="SimPO that asks a larger margin of pairs on which the policy already leads the reference by more.",
    source="Wu et al., arXiv:2410.10148",
    formula="softplus(-beta * (s - (gamma_beta_ratio + alpha * z))), "
    "s = policy_chosen_logps / chosen_tokens - policy_rejected_logps / rejected_tokens; "
    "z = (gap - M) / S, gap = s minus the reference's s; M, S: running mean and std of the gap",
    loss=_loss,
    observe=_observe,
)
