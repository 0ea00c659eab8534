"""DiscoPOP: a loss found by a language model, between the logistic and the exponential one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class DiscopopConfig(MethodConfig):
    """Parameters of DiscoPOP."""

    beta: Coefficient = Field(default=0.05, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    temperature: float = Field(default=0.05, gt=0, le=1)
    """Width of the change between the two losses, in implicit reward. Above 1 the loss of a badly ranked pair would
    grow exponentially."""


def discopop_loss(log_ratio_diff: Tensor, *, beta: float, temperature: float) -> Tensor:
    """Per-pair DiscoPOP loss.

    With u = beta * log_ratio_diff and m = sigmoid(u / temperature):
        loss = (1 - m) * softplus(-u) + m * exp(-u)
    logistic where u < 0, exponential where u > 0; m * exp(-u) is taken as one exponential, which cannot overflow.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.
        temperature: In (0, 1].

    Returns:
        Losses [B].

    Source: Lu et al., arXiv:2406.08414.
    """
    from torch.nn.functional import logsigmoid, softplus

    u = beta * log_ratio_diff
    scaled = u / temperature
    return (-scaled).sigmoid() * softplus(-u) + (logsigmoid(scaled) - u).exp()


def _loss(config: DiscopopConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(discopop_loss(batch.log_ratio_diff, beta=config.beta, temperature=config.temperature))


DISCOPOP = Method(
    name="discopop",
    config=DiscopopConfig,
    requires=Requirements(reference=True),
    summary="Discovered preference optimisation: logistic loss on misranked pairs, exponential on the others.",
    source="Lu et al., arXiv:2406.08414",
    formula="(1 - m) * softplus(-u) + m * exp(-u), u = beta * log_ratio_diff, m = sigmoid(u / temperature)",
    loss=_loss,
)
