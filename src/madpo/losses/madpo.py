"""MADPO: DPO with a weight per pair, from a reward model's margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from madpo.errors import InvalidArgumentError
from madpo.losses.dpo import dpo_loss
from madpo.losses.method import Coefficient, LossBatch, LossContext, LossOutput, Method, MethodConfig, Requirements
from madpo.losses.scales import MarginScale, number

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["full", "amp_only", "reg_only"]

# Only weights without the clip come near; it keeps them, and sums of weighted losses, finite in float32.
_MAX_LOG_WEIGHT = 30.0


class MadpoConfig(MethodConfig):
    """Parameters of MADPO."""

    beta: Coefficient = Field(default=0.1, gt=0)
    """Strength of the pull to the reference: implicit reward per nat of log-ratio."""
    c_max: Coefficient = Field(default=2.0, ge=1)
    """Amplification of pairs with a small margin; exactly 1 gives plain DPO, not damping alone (see `mode`)."""
    c_min: float = Field(default=0.5, gt=0, le=1)
    """Damping of pairs with a large margin; exactly 1 gives plain DPO. The paper ties it to 1 / c_max."""
    lam: Coefficient = Field(default=1.0, gt=0)
    """Steepness of the change around `tau`, per reward-model logit (lambda in the paper)."""
    tau: MarginScale = math.log(0.999 / 0.001)
    """Margin at which a pair's weight is 1, in reward-model logits (after margin.temperature).

    The default is the paper's setting: the margin of a 99.9 % sure preference, about 6.9. The class in the paper's
    published code defaults to 2. {"quantile": q} takes that quantile of |margin| over the training pairs; "auto" the
    margin at which this reward model is 99.9 % sure, by its temperature on held-out pairs.
    """
    mode: Mode = "full"
    """`amp_only` never damps (c >= 1), `reg_only` never amplifies (c <= 1)."""
    clip_negative: bool = True
    """Give pairs with a margin at or below -tau weight 1, as the paper's code does."""
    normalize_weights: bool = False
    """Divide by the mean weight of the global batch, which keeps the loss on DPO's scale; not in the paper."""

    def extra_requirements(self) -> Mapping[str, bool]:
        """The mean weight is one of the global batch."""
        return {"global_batch": self.normalize_weights}

    def margin_scales(self) -> Mapping[str, MarginScale]:
        """The turning point is a margin; a rule for it is resolved before the first step."""
        return {"tau": self.tau}

    @property
    def tau_logits(self) -> float:
        """`tau` as a number. Raises InvalidArgumentError while it is a rule."""
        return number("tau", self.tau)


def madpo_coefficient(
    reward_margin: Tensor, *, c_min: float, c_max: float, lam: float, tau: float, mode: Mode = "full"
) -> Tensor:
    """Factor by which MADPO scales a pair's target margin.

    With m = |reward_margin| and K = (c_max - 1) / (1 - c_min):
        c = c_min + (c_max - c_min) / (1 + K * exp(lam * (m - tau)))
    strictly decreasing in m, from below c_max over c(tau) = 1 to c_min. At c_max = 1 or c_min = 1 the formula is
    0/0 or constant; its limit is c = 1 everywhere.

    Args:
        reward_margin: Reward-model logits, chosen minus rejected, [B].
        c_min: Limit for easy pairs; 0 < c_min <= 1.
        c_max: Upper bound for hard pairs; at least 1.
        lam: Steepness around tau, per reward-model logit; positive.
        tau: Margin at which c is 1, in reward-model logits; positive.
        mode: `amp_only` takes max(c, 1), `reg_only` min(c, 1).

    Returns:
        Coefficients, shape and dtype of `reward_margin`.

    Raises:
        InvalidArgumentError: A parameter is outside its range.

    Source: Rho, arXiv:2510.05342v1, with the authors' published code.
    """
    import torch

    _check(c_min=c_min, c_max=c_max, lam=lam, tau=tau)
    if c_max == 1 or c_min == 1:
        return torch.ones_like(reward_margin)
    log_k = math.log((c_max - 1) / (1 - c_min))
    c = c_min + (c_max - c_min) * torch.sigmoid(-(lam * (reward_margin.abs() - tau) + log_k))
    if mode == "amp_only":
        return c.clamp(min=1)
    return c.clamp(max=1) if mode == "reg_only" else c


def madpo_weight(
    reward_margin: Tensor,
    *,
    c_min: float,
    c_max: float,
    lam: float,
    tau: float,
    mode: Mode = "full",
    clip_negative: bool = True,
) -> Tensor:
    """Per-pair MADPO loss weight from the reward model's margin.

    With h = reward_margin and c of `madpo_coefficient`:
        weight = sigmoid(c * h) / sigmoid(h)    if h > -tau
               = 1                              if h <= -tau, with `clip_negative`
    The ratio is taken in log space: finite for any finite margin. In `full` mode 1 < weight < 2 for 0 < h < tau, weight
    < 1 above tau and below 0 (the label contradicts the reward model), weight = 1 at 0 and at +-tau.

    Args:
        reward_margin: Reward-model logits, chosen minus rejected; not scaled by beta. [B], no gradient is taken.
        c_min: See `madpo_coefficient`, as for c_max, lam, tau and mode.
        c_max: Likewise.
        lam: Likewise.
        tau: Likewise.
        mode: Likewise.
        clip_negative: Weight 1 at and below -tau. Without it weights there grow like exp((1 - c_min) * |h|), up to
            exp(30).

    Returns:
        Positive weights without gradient, shape and dtype of `reward_margin`. Multiply the unreduced DPO loss.

    Raises:
        InvalidArgumentError: A parameter is outside its range.

    Source: Rho, arXiv:2510.05342v1; the clip is in the authors' published code.
    """
    import torch
    from torch.nn.functional import logsigmoid

    h = reward_margin.detach()
    c = madpo_coefficient(h, c_min=c_min, c_max=c_max, lam=lam, tau=tau, mode=mode)
    log_weight = (logsigmoid(c * h) - logsigmoid(h)).clamp(max=_MAX_LOG_WEIGHT)
    if clip_negative:
        log_weight = torch.where(h > -tau, log_weight, 0.0)
    return log_weight.exp()


def _check(*, c_min: float, c_max: float, lam: float, tau: float) -> None:
    if not 0 < c_min <= 1 <= c_max < math.inf:
        raise InvalidArgumentError(f"MADPO needs 0 < c_min <= 1 <= c_max, got c_min={c_min}, c_max={c_max}")
    if not (0 < lam < math.inf and 0 < tau < math.inf):
        raise InvalidArgumentError(f"MADPO needs lam > 0 and tau > 0 reward-model logits, got lam={lam}, tau={tau}")


def _raw_weight(config: MadpoConfig, batch: LossBatch) -> Tensor:
    return madpo_weight(
        batch.require("reward_margin"),
        c_min=config.c_min,
        c_max=config.c_max,
        lam=config.lam,
        tau=config.tau_logits,
        mode=config.mode,
        clip_negative=config.clip_negative,
    )


def _observe(config: MadpoConfig, batch: LossBatch) -> Mapping[str, Tensor]:
    return {"weight": _raw_weight(config, batch)}


def _loss(config: MadpoConfig, batch: LossBatch, context: LossContext) -> LossOutput:
    margin = batch.require("reward_margin").detach()
    weight = _raw_weight(config, batch)
    if config.normalize_weights:
        weight = weight / context.stats["weight"].mean()
    coefficient = madpo_coefficient(
        margin, c_min=config.c_min, c_max=config.c_max, lam=config.lam, tau=config.tau_logits, mode=config.mode
    )
    return LossOutput(
        per_pair=weight * dpo_loss(batch.log_ratio_diff, beta=config.beta),
        weight=weight,
        metrics={
            "madpo/coefficient": coefficient,
            "madpo/clipped_ratio": (margin <= -config.tau_logits).to(margin.dtype),
            "madpo/contradicted_ratio": ((margin > -config.tau_logits) & (margin < 0)).to(margin.dtype),
        },
    )


MADPO = Method(
    name="madpo",
    config=MadpoConfig,
    requires=Requirements(reference=True, margin=True),
    summary="Margin-adaptive DPO: amplifies pairs the reward model finds close, damps easy and contradicted ones.",
    source="Rho, arXiv:2510.05342",
    formula="sigmoid(c * h) / sigmoid(h) * softplus(-beta * log_ratio_diff), h = reward_margin, 1 where h <= -tau; "
    "c = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) * exp(lam * (|h| - tau)))",
    loss=_loss,
    observe=_observe,
)
