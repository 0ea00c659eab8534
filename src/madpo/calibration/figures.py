"""Figures of margins: how often they order pairs rightly, and how far sigmoid(margin) is a probability.

A margin is the chosen minus the rejected reward in reward-model logits, so a positive one agrees with the label.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from madpo.calibration.report import ReliabilityBin

Vector = NDArray[np.float64]

_BINS = 10
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Temperature:
    """The divisor that makes margins log-odds, with a 95 % interval; `high` is None where nothing bounds it."""

    value: float
    low: float
    high: float | None
    fitted: bool
    """False: no divisor in [0.05, 20] is best, and `value` is the end of that range that fits better."""


def wins(differences: ArrayLike) -> Vector:
    """1 for each positive difference, 0 for a negative one; a tie counts half."""
    return (np.sign(np.asarray(differences, dtype=np.float64)) + 1) / 2


def accuracy(margins: ArrayLike) -> float:
    """Share of pairs ordered as labelled; a tie counts half."""
    return float(wins(margins).mean())


def contradicted_ratio(margins: ArrayLike) -> float:
    """Share of pairs whose label the reward model contradicts."""
    return float((_vector(margins) < 0).mean())


def log_loss(margins: ArrayLike) -> float:
    """Mean of softplus(-margin), the Bradley-Terry negative log-likelihood in nats."""
    return float(np.logaddexp(0, -_vector(margins)).mean())


def reliability(margins: ArrayLike) -> tuple[ReliabilityBin, ...]:
    """Confidence and accuracy in ten equal bins of confidence over [0.5, 1]; empty bins are left out."""
    margins = _vector(margins)
    confidence = _sigmoid(np.abs(margins))
    correct = wins(margins)
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    return tuple(
        ReliabilityBin(
            confidence=float(confidence[members].mean()), accuracy=float(correct[members].mean()), pairs=len(members)
        )
        for members in (np.flatnonzero(bins == index) for index in range(_BINS))
        if len(members)
    )


def expected_calibration_error(margins: ArrayLike) -> float:
    """Mean |accuracy - confidence| over the bins of `reliability`, weighted by their pairs.

    Source: Guo et al., arXiv:1706.04599, equation 3.
    """
    bins = reliability(margins)
    return sum(each.pairs * abs(each.accuracy - each.confidence) for each in bins) / sum(each.pairs for each in bins)


def fit_temperature(margins: ArrayLike) -> Temperature:
    """The t in [0.05, 20] that minimises the mean of softplus(-margin / t).

    In b = 1 / t the loss is convex, and its slope is -mean(margin * sigmoid(-b * margin)): bisection finds where that
    is 0, and nowhere when the pairs are all ordered rightly or no better than by a coin. The interval is Wald's in b,
    from the Fisher information sum(margin^2 * p * (1 - p)) with p = sigmoid(b * margin).
    """
    margins = _vector(margins)

    def rises(log_inverse: float) -> bool:
        """Whether the loss grows with b there."""
        return bool((margins * _sigmoid(-np.exp(log_inverse) * margins)).mean() <= 0)

    low, high = -np.log(_MAX_TEMPERATURE), -np.log(_MIN_TEMPERATURE)
    if rises(low):
        return Temperature(_MAX_TEMPERATURE, _MAX_TEMPERATURE, None, fitted=False)
    # Without a pair ordered wrongly the loss falls for ever; far out its slope is too small to be told from 0.
    if (margins >= 0).all() or not rises(high):
        return Temperature(_MIN_TEMPERATURE, 0.0, _MIN_TEMPERATURE, fitted=False)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    inverse = float(np.exp((low + high) / 2))
    probability = _sigmoid(inverse * margins)
    information = float((margins**2 * probability * (1 - probability)).sum())
    half_width = _Z / math.sqrt(information) if information > 0 else math.inf
    return Temperature(
        1 / inverse,
        1 / (inverse + half_width),
        1 / (inverse - half_width) if inverse > half_width else None,
        fitted=True,
    )


def reward_report(chosen: ArrayLike, rejected: ArrayLike) -> dict[str, float]:
    """What a reward model's training says of it: accuracy, loss and calibration on held-out pairs, and its scores.

    Args:
        chosen: Raw logits of the preferred responses, [N].
        rejected: Raw logits of the others, [N].
    """
    chosen, rejected = _vector(chosen), _vector(rejected)
    margins, scores = chosen - rejected, np.concatenate([chosen, rejected])
    return {
        "accuracy": accuracy(margins),
        "loss": log_loss(margins),
        "ece": expected_calibration_error(margins),
        "temperature": fit_temperature(margins).value,
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(ddof=1)),
        "margin_mean": float(margins.mean()),
        "margin_std": float(margins.std(ddof=1)) if len(margins) > 1 else 0.0,
        "pairs": float(len(margins)),
    }


def _vector(values: ArrayLike) -> Vector:
    return np.asarray(values, dtype=np.float64)


def _sigmoid(values: Vector) -> Vector:
    """Without overflow at either end."""
    return (1 + np.tanh(values / 2)) / 2
