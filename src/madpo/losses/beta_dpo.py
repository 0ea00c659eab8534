"""beta-DPO: DPO with one beta per batch and outlying pairs left out."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.moments import running_moments
from madpo.types import AtMost

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class BetaDpoConfig(MethodConfig):
    """Parameters of beta-DPO.

    The defaults follow the authors' code but for `bias_correction`. The re-implementation in the MADPO paper's code has
    `gap_scale` reward, `beta_from` all, `min_beta` null, `initial_std` 1 and no bias correction.
    """

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference for a batch of ordinary gaps (beta0 in the paper)."""
    alpha: Coefficient = Field(default=0.6, ge=0)
    """Relative change of beta per unit of the batch's mean gap above its running mean; 0 keeps beta constant."""
    filter_ratio: float = Field(default=0.2, ge=0, lt=1)
    """Share of pairs left out of each batch by a draw that favours ordinary gaps; 0 keeps all."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the past in the running mean and standard deviation of the gap."""
    min_beta: Annotated[float | None, AtMost(1_000)] = Field(default=1e-3, gt=0)
    """Floor of the batch's beta. Null: none, and a batch of small gaps can turn beta negative."""
    gap_scale: Literal["log_ratio", "reward"] = "log_ratio"
    """The gap is the log-ratio difference in nats, as in the authors' code, or beta times it, as in the paper: the same
    alpha then acts beta times as strongly."""
    beta_from: Literal["drawn", "all"] = "drawn"
    """Pairs whose mean gap sets beta: those kept by the draw, or all."""
    bias_correction: bool = True
    """Correct the running statistics for their start. Without, as in the authors' code, they begin near 0: in the first
    steps hardly any pair looks ordinary."""
    initial_std: Coefficient = Field(default=0.0, ge=0)
    """Where the running standard deviation starts; of no effect with bias correction."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """Chance decides only when pairs are left out."""
        return {"stochastic": self.filter_ratio > 0}


def gap_log_score(gap: Tensor, *, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Log of how ordinary each gap is, -((gap - mean) / std)^2 / 2.

    Args:
        gap: Of the pairs, [N].
        mean: Running mean of the gap.
        std: Its running standard deviation; positive.

    Source: Wu et al., arXiv:2407.08639, with the authors' published code.
    """
    return -0.5 * ((gap - mean) / std).square()


def draw_pairs(log_score: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw pairs one after the other, without replacement, each with probability proportional to its score.

    Done by Gumbel noise on the log-scores, which is the same distribution and cannot underflow.

    Args:
        log_score: [N].
        count: Pairs to draw, at most N.
        generator: On the CPU; gives the same draw on any device.

    Returns:
        True on the drawn pairs, [N].
    """
    import torch

    uniform = torch.rand(len(log_score), dtype=torch.float64, generator=generator)
    keys = log_score.detach().double().cpu() - (-uniform.log()).log()
    drawn = torch.zeros(len(keys), dtype=torch.bool)
    drawn[keys.topk(count).indices] = True
    return drawn.to(log_score.device)


def batch_beta(
    mean_gap: Tensor, running_mean: Tensor | float, *, beta: float, alpha: float, min_beta: float | None = 1e-3
) -> Tensor:
    """Beta of a batch, max(beta * (1 + alpha * (mean_gap - running_mean)), min_beta).

    Args:
        mean_gap: Of the batch, scalar.
        running_mean: Of the gap over the batches so far.
        beta: Where the two are equal.
        alpha: Relative change per unit of gap.
        min_beta: Floor; None for none.

    Source: Wu et al., arXiv:2407.08639; the floor is in the authors' published code.
    """
    value = beta * (1 + alpha * (mean_gap - running_mean))
    return value if min_beta is None else value.clamp(min=min_beta)


def _observe(config: BetaDpoConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    scale = config.beta if config.gap_scale == "reward" else 1.0
    return {"gap": scale * batch.log_ratio_diff.detach()}


def _loss(config: BetaDpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    import torch
    from torch.nn.functional import softplus

    log_ratio_diff = batch.log_ratio_diff
    gap = context.stats["gap"]
    gap = gap.to(torch.promote_types(gap.dtype, torch.float32))
    moments = running_moments(
        gap,
        context.state,
        momentum=config.momentum,
        bias_correction=config.bias_correction,
        initial_std=config.initial_std,
        training=context.training,
    )
    log_score = gap_log_score(gap, mean=moments.mean, std=moments.std)
    drawn = torch.ones_like(gap, dtype=torch.bool)
    if config.filter_ratio > 0:
        # 1e-9: a whole number of pairs is not lost to rounding.
        kept = max(1, floor(len(gap) * (1 - config.filter_ratio) + 1e-9))
        drawn = draw_pairs(log_score, kept, context.generator)
    mean_gap = (gap[drawn] if config.beta_from == "drawn" else gap).mean()
    beta = batch_beta(mean_gap, moments.mean, beta=config.beta, alpha=config.alpha, min_beta=config.min_beta)
    per_pair = softplus(-beta * log_ratio_diff)
    return LossOutput(
        per_pair=per_pair,
        weight=per_pair.new_ones(per_pair.shape),
        mask=context.own(drawn),
        kept=int(drawn.sum()),
        metrics={
            "beta_dpo/beta": beta.expand(len(per_pair)),
            "beta_dpo/score": context.own(log_score).exp(),
            "beta_dpo/kept_ratio": context.own(drawn).to(gap.dtype),
        },
        state=moments.state if context.training else None,
    )


BETA_DPO = Method(
    name="beta_dpo",
    config=BetaDpoConfig,
    requires=Requirements(reference=True, global_batch=True, policy_figures=True, stateful=True, stochastic=True),
    summary="DPO that raises beta on batches of large implicit gaps, lowers it on small ones, and leaves out outliers.",
    source="Wu et al., arXiv:2407.08639",
    formula="softplus(-beta_b * log_ratio_diff) over the drawn pairs; "
    "beta_b = max(beta * (1 + alpha * (mean(gap of the drawn) - M)), min_beta), gap = log_ratio_diff; "
    "drawn with probability proportional to exp(-((gap - M) / S)^2 / 2); M, S: running mean and std of the gap",
    loss=_loss,
    observe=_observe,
)
