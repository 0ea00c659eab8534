"""Win rates as they would be were both responses equally long.

Judges prefer long responses. Dubois et al. (arXiv:2404.04475) fit a generalized linear model to the preferences of a
judge and read it where the lengths are equal:

    P(ours is preferred) = sigmoid(theta + phi * tanh(d / std(d))),   d = length of ours - length of theirs
    length-controlled win rate = sigmoid(theta)

AlpacaEval's third term, the difficulty of each instruction, is fitted over many models and is left out here.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from madpo.evaluation.report import Interval

_RESAMPLES, _SEED = 2000, 0
_RIDGE = 1.0
"""On phi: as much as one prompt says, so that it stays finite where length alone decides."""
_STEPS, _LONGEST_STEP, _FARTHEST = 30, 2.0, 12.0
_MAX_GATHERED = 2_000_000

Floats = NDArray[np.float64]


def length_controlled_win_rate(
    preferences: ArrayLike, length_differences: ArrayLike, prompts: ArrayLike
) -> tuple[float, Interval | None]:
    """The rate with its interval.

    Args:
        preferences: For ours, of each pair, from 0 to 1 [N].
        length_differences: Ours less theirs, in characters [N].
        prompts: Numbers of the prompts of the pairs [N]; each prompt counts as one, however many pairs it has.

    Returns:
        The rate, and percentiles of fits to 2,000 bootstrap resamples of the prompts; None with a single prompt.
    """
    y, differences = np.asarray(preferences, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    _, places, counts = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    spread = float(differences.std())
    z = np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences)
    weights = 1.0 / counts[places]
    rate = float(_rates(y, z, weights[None, :])[0])
    if len(counts) < 2:
        return rate, None
    rng = np.random.default_rng(_SEED)
    block = max(1, _MAX_GATHERED // len(y))
    rates = []
    for start in range(0, _RESAMPLES, block):
        drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), min(block, _RESAMPLES - start))
        rates.append(_rates(y, z, drawn[:, places] * weights))
    low, high = np.quantile(np.concatenate(rates), [0.025, 0.975])
    return rate, (float(low), float(high))


def _rates(y: Floats, z: Floats, weights: Floats) -> Floats:
    """sigmoid(theta) of a fit by Newton's method for each row of weights [R, N]."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * z)
        curvature = weights * p * (1 - p)
        slope0, slope1 = (weights * (y - p)).sum(axis=1), (weights * (y - p)) @ z - _RIDGE * phi
        a, b, c = curvature.sum(axis=1) + 1e-9, curvature @ z, curvature @ (z * z) + _RIDGE
        determinant = a * c - b * b
        step0, step1 = (c * slope0 - b * slope1) / determinant, (a * slope1 - b * slope0) / determinant
        shorter = np.minimum(1.0, _LONGEST_STEP / np.maximum(1e-12, np.maximum(np.abs(step0), np.abs(step1))))
        theta = np.clip(theta + shorter * step0, -_FARTHEST, _FARTHEST)
        phi = phi + shorter * step1
    plain = (weights * y).sum(axis=1) / weights.sum(axis=1)
    # Where one side wins always there is no finite theta, and nothing for lengths to explain.
    return np.where((plain <= 0) | (plain >= 1), plain, _sigmoid(theta))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float64)
