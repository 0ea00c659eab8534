"""EXO on pairs: reverse KL divergence of the policy's preference to a nearly certain one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.terms import unweighted

if TYPE_CHECKING:
    from torch import Tensor


class ExoPairConfig(MethodConfig):
    """Parameters of EXO on pairs."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """Probability the target leaves to the rejected response."""


def exo_pair_loss(log_ratio_diff: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Per-pair EXO loss.

    With u = beta * log_ratio_diff, p = sigmoid(u) and e = label_smoothing:
        loss = p * (log(p) - log(1 - e)) + (1 - p) * (log(1 - p) - log(e))
    the divergence of (p, 1 - p) from (1 - e, e): 0 only at p = 1 - e. Called DMPO where the log-ratios are those of a
    diffusion model's denoising errors.

    Args:
        log_ratio_diff: Policy minus reference log-prob, chosen minus rejected; in nats, [B], with gradient.
        beta: Implicit reward per nat; positive.
        label_smoothing: In (0, 0.5).

    Returns:
        Losses [B], not negative.

    Source: Ji et al., arXiv:2402.00856.
    """
    from torch.nn.functional import logsigmoid

    u = beta * log_ratio_diff
    chosen = u.sigmoid() * (logsigmoid(u) - math.log1p(-label_smoothing))
    return chosen + (-u).sigmoid() * (logsigmoid(-u) - math.log(label_smoothing))


def _loss(config: ExoPairConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    return unweighted(exo_pair_loss(batch.log_ratio_diff, beta=config.beta, label_smoothing=config.label_smoothing))


EXO_PAIR = Method(
    name="exo_pair",
    config=ExoPairConfig,
    requires=Requirements(reference=True),
    summary="Efficient exact optimisation on pairs: DPO with the divergence turned round, which seeks the mode.",
    source="Ji et al., arXiv:2402.00856",
    formula="p * log(p / (1 - label_smoothing)) + (1 - p) * log((1 - p) / label_smoothing), "
    "p = sigmoid(beta * log_ratio_diff)",
    loss=_loss,
)
