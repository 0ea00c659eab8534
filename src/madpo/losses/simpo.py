"""SimPO: reference-free, length-normalised, with a target margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import average_logps, observe_chosen_tokens, sft_requirements, unweighted, with_chosen_nll

if TYPE_CHECKING:
    from torch import Tensor

Link = Literal["logistic", "hinge"]


class SimpoConfig(MethodConfig):
    """Parameters of SimPO.

    Published pairs of `beta` and `gamma_beta_ratio`: 2 with 0.5 to 0.8, 2.5 with 0.1 to 0.55, 10 with 0.3 to 0.5.
    """

    beta: Coefficient = Field(default=2.0, gt=0)
    """Reward per nat per token; there is no reference to stay close to."""
    gamma_beta_ratio: Coefficient = Field(default=0.25, ge=0)
    """Target margin over beta, in nats per token. TRL asks for the target margin gamma itself."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose label is flipped; of the logistic link."""
    link: Link = "logistic"
    """`hinge` takes max(0, 1 - z) in place of softplus(-z)."""
    sft_weight: Coefficient = Field(default=0.0, ge=0)
    """Weight of the chosen responses' negative log-likelihood, averaged over all chosen tokens of the batch."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The number of chosen tokens in the whole batch, for the likelihood."""
        return sft_requirements(self.sft_weight)


def simpo_loss(
    average_logp_diff: Tensor,
    *,
    beta: float,
    gamma_beta_ratio: float,
    label_smoothing: float = 0.0,
    link: Link = "logistic",
) -> Tensor:
    """Per-pair SimPO loss.

    With z = beta * (average_logp_diff - gamma_beta_ratio):
        logistic    softplus(-z) + label_smoothing * z
        hinge       max(0, 1 - z)

    Args:
        average_logp_diff: Log-prob per token, chosen minus rejected; in nats, [B], with gradient.
        beta: Reward per nat per token; positive.
        gamma_beta_ratio: Target margin, in nats per token; at least 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5).
        link: Loss of the margin.

    Returns:
        Losses [B].

    Source: Meng et al., arXiv:2405.14734, equation 6, gamma = beta * gamma_beta_ratio; switches as in its code.
    """
    from torch.nn.functional import softplus

    z = beta * (average_logp_diff - gamma_beta_ratio)
    if link == "hinge":
        return (1 - z).relu()
    return softplus(-z) + label_smoothing * z


def _loss(config: SimpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen = average_logps(batch.policy_chosen_logps, batch.require("chosen_tokens"))
    rejected = average_logps(batch.policy_rejected_logps, batch.require("rejected_tokens"))
    per_pair = simpo_loss(
        chosen - rejected,
        beta=config.beta,
        gamma_beta_ratio=config.gamma_beta_ratio,
        label_smoothing=config.label_smoothing,
        link=config.link,
    )
    per_pair, aux = with_chosen_nll(per_pair, batch, context, weight=config.sft_weight)
    return unweighted(per_pair, aux=aux)


SIMPO = Method(
    name="simpo",
    config=SimpoConfig,
    requires=Requirements(lengths=True),
    summary="Simple preference optimisation: the reward is the average log-prob itself, with a target margin; no "
    "reference model.",
    source="Meng et al., arXiv:2405.14734",
    formula="softplus(-beta * (chosen_logps / chosen_tokens - rejected_logps / rejected_tokens - gamma_beta_ratio))",
    loss=_loss,
    observe=observe_chosen_tokens,
)
