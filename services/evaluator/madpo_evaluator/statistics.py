"""Means and comparisons with 95% intervals. Samples of one prompt resemble each other, so the prompt is the unit."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from madpo.calibration.figures import wins
from madpo.evaluation.report import Accuracy, Comparison, Estimate, Interval

_Z = 1.959963984540054  # 97.5% quantile of the normal distribution
_RESAMPLES = 2000
_SEED = 0
_MAX_GATHERED = 4_000_000


def estimate_mean(values: ArrayLike) -> Estimate:
    """Mean of samples [prompts, samples per prompt] with a normal interval over prompt means."""
    samples = np.asarray(values, dtype=np.float64)
    std = float(samples.std(ddof=1)) if samples.size > 1 else 0.0
    means = samples.mean(axis=1)
    center = float(means.mean())
    if len(means) < 2:
        return Estimate(mean=center, std=std, ci=None)
    half_width = _Z * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Estimate(mean=center, std=std, ci=(center - half_width, center + half_width))


def estimate_accuracy(log_ratio_diff: ArrayLike) -> Accuracy:
    """Share of positive differences [N], ties counting half, with Wilson's interval.

    Wilson's score interval (1927) stays inside [0, 1] and honest where all pairs agree, unlike the normal one.
    """
    won = wins(log_ratio_diff)
    n, share = len(won), float(won.mean())
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half_width = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    interval = (max(0.0, center - half_width), min(1.0, center + half_width))
    return Accuracy(accuracy=share, ci=interval, pairs=n)


def compare(values: ArrayLike, baseline: ArrayLike) -> Comparison:
    """Paired comparison of samples [prompts, samples per prompt]; sample i of a prompt meets sample i.

    A win is a larger value, a tie half a win. Intervals are percentiles of 2,000 bootstrap resamples of the prompts,
    always with the same seed.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    per_prompt = np.stack([wins(difference).mean(axis=1), difference.mean(axis=1)], axis=1)
    win_rate, mean_difference = map(float, per_prompt.mean(axis=0))
    tie_rate = float((difference == 0).mean())
    if len(per_prompt) < 2:
        return Comparison(
            win_rate=win_rate, tie_rate=tie_rate, win_rate_ci=None, difference=mean_difference, difference_ci=None
        )
    low, high = np.quantile(_bootstrap_means(per_prompt), [0.025, 0.975], axis=0)
    return Comparison(
        win_rate=win_rate,
        tie_rate=tie_rate,
        win_rate_ci=(float(low[0]), float(high[0])),
        difference=mean_difference,
        difference_ci=(float(low[1]), float(high[1])),
    )


def bootstrap_interval(per_prompt: ArrayLike) -> Interval | None:
    """Interval of the mean of one figure a prompt [N], as `compare` has it; None with a single prompt."""
    values = np.asarray(per_prompt, dtype=np.float64)
    if len(values) < 2:
        return None
    low, high = np.quantile(_bootstrap_means(values[:, None]), [0.025, 0.975])
    return float(low), float(high)


def _bootstrap_means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means [resamples, K] of rows [N, K] drawn with replacement, in blocks that bound the memory."""
    rng = np.random.default_rng(_SEED)
    block = max(1, _MAX_GATHERED // rows.size)
    sizes = [min(block, _RESAMPLES - start) for start in range(0, _RESAMPLES, block)]
    return np.concatenate([rows[rng.integers(len(rows), size=(size, len(rows)))].mean(axis=1) for size in sizes])
