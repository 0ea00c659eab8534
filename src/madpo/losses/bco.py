"""BCO on pairs: binary classifier optimisation, responses classified as chosen or rejected by their own log-ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class BcoPairConfig(MethodConfig):
    """Parameters of BCO on pairs."""

    beta: Coefficient = Field(default=0.01, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    center: bool = False
    """Classify against the mean implicit reward of all responses so far, as the unpaired form does, instead of 0."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The running mean is one of the policy's rewards over global batches."""
        return {"global_batch": self.center, "policy_figures": self.center, "stateful": self.center}


def bco_pair_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, center: Tensor | float = 0.0
) -> Tensor:
    """Per-pair BCO loss, softplus(-(beta * chosen_log_ratio - center)) + softplus(beta * rejected_log_ratio - center).

    A page of TRL's documentation gives DPO's formula under this name; its code has these two terms.

    Args:
        chosen_log_ratio: Policy minus reference log-prob, in nats, [B], with gradient.
        rejected_log_ratio: Likewise.
        beta: Implicit reward per nat; positive.
        center: Implicit reward on the border of the classes.

    Returns:
        Losses [B].

    Source: Jung et al., arXiv:2404.04656.
    """
    from torch.nn.functional import softplus

    return softplus(center - beta * chosen_log_ratio) + softplus(beta * rejected_log_ratio - center)


def running_mean(values: Tensor, state: Mapping[str, Tensor], *, training: bool = True) -> Mapping[str, Tensor]:
    """Mean of all values so far.

    Args:
        values: Of this step.
        state: `mean` and `count` before it; empty at the first.
        training: False leaves a state that is there as it is.

    Returns:
        The state after the step: scalars `mean`, in float32 or better, and `count`.
    """
    import torch

    if state and not training:
        return state
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    if not state:
        return {"mean": values.mean(), "count": torch.tensor(values.numel(), device=values.device)}
    count = state["count"] + values.numel()
    return {"mean": state["mean"] + (values - state["mean"]).sum() / count, "count": count}


def _observe(config: BcoPairConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {"reward": config.beta * (batch.chosen_log_ratio + batch.rejected_log_ratio).detach() / 2}


def _loss(config: BcoPairConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    chosen, rejected = batch.chosen_log_ratio, batch.rejected_log_ratio
    if not config.center:
        return unweighted(bco_pair_loss(chosen, rejected, beta=config.beta))
    state = running_mean(context.stats["reward"], context.state, training=context.training)
    center = state["mean"].to(chosen.dtype)
    per_pair = bco_pair_loss(chosen, rejected, beta=config.beta, center=center)
    output = unweighted(per_pair, metrics={"bco/center": center.expand(len(per_pair))})
    return replace(output, state=state) if context.training else output


BCO_PAIR = Method(
    name="bco_pair",
    config=BcoPairConfig,
    requires=Requirements(reference=True),
    summary="Binary classifier optimisation on pairs: each response is classified as chosen or rejected on its own.",
    source="Jung et al., arXiv:2404.04656",
    formula="softplus(-(a - center)) + softplus(b - center), a = beta * chosen_log_ratio, "
    "b = beta * rejected_log_ratio, center = 0 or the running mean of a and b",
    loss=_loss,
    observe=_observe,
)
