"""From records to paired differences and to reward at equal KL."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.methods.results import Record

# 97.5 % quantiles of Student's t by degrees of freedom, 1 to 30.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Points = Mapping[int, Mapping[float, tuple[float, float]]]
"""By seed, by beta: (KL, reward)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    standard_error: float
    """NaN for one seed."""
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """Of one number per seed."""
        each = np.asarray(list(values), dtype=np.float64)
        if not len(each):
            return cls(math.nan, math.nan, 0)
        error = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return cls(float(each.mean()), error, len(each))

    @property
    def half_width(self) -> float:
        """Of the 95 % interval, by Student's t."""
        return self.standard_error * _T[min(self.seeds - 1, len(_T)) - 1] if self.seeds > 1 else math.nan

    @property
    def errors_away(self) -> float:
        """Distance from 0 in standard errors."""
        return self.mean / self.standard_error if self.standard_error > 0 else math.nan


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Records whose job has all of these fields."""
    return [each for each in records if all(each["job"].get(name) == value for name, value in wanted.items())]


def by_seed(records: Iterable[Record], value: str) -> dict[int, float]:
    """A value of each seed; runs that diverged are left out."""
    return {each["job"]["seed"]: each["values"][value] for each in records if value in each["values"]}


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Difference over the seeds both have."""
    return Estimate.of(values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys()))


def points(records: Iterable[Record]) -> dict[str, Points]:
    """Where each arm stands, by seed and beta."""
    found: dict[str, dict[int, dict[float, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        job, values = record["job"], record["values"]
        if "kl" in values:
            found[job["arm"]][job["seed"]][job["beta"]] = (values["kl"], values["reward"])
    return {arm: dict(seeds) for arm, seeds in found.items()}


def bandit_points(record: Record) -> dict[str, Points]:
    """The same of a record of stacked bandits, which holds all worlds."""
    found: dict[str, dict[int, dict[float, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for setting in record["values"]["settings"]:
        for world, at in enumerate(zip(setting["kl"], setting["reward"], strict=True)):
            found[setting["arm"]][world][setting["beta"]] = at
    return {arm: dict(worlds) for arm, worlds in found.items()}


def reward_at(curve: Mapping[float, tuple[float, float]], kl: float) -> float | None:
    """Reward at a KL, between the neighbouring settings in order of KL; None outside of what was reached.

    By the shape-preserving cubic in d = sqrt(KL), in which rewards over d are nearly straight (Gao et al.,
    arXiv:2210.10760). Straight lines in KL between few points would lie below the bent curve, the more so for the arm
    whose points happen to lie farther from the KL asked for.
    """
    ordered = sorted(curve.values())
    if len(ordered) < 2 or not ordered[0][0] <= kl <= ordered[-1][0]:
        return None
    x, y = np.sqrt([x for x, _ in ordered]), np.array([y for _, y in ordered])
    if (np.diff(x) <= 0).any():
        return float(np.interp(math.sqrt(kl), x, y))
    return _cubic(x, y, math.sqrt(kl))


def _cubic(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Piecewise cubic with slopes that keep the data's monotone stretches (SIAM J. Numer. Anal. 17, 1980)."""
    width = np.diff(x)
    secant = np.diff(y) / width
    slopes = np.empty(len(x))
    slopes[0], slopes[-1] = _end_slope(width, secant), _end_slope(width[::-1], secant[::-1])
    for index in range(1, len(x) - 1):
        before, after = secant[index - 1], secant[index]
        if before * after <= 0:
            slopes[index] = 0.0
        else:
            left, right = 2 * width[index] + width[index - 1], width[index] + 2 * width[index - 1]
            slopes[index] = (left + right) / (left / before + right / after)
    place = min(int(np.searchsorted(x, at, side="right")) - 1, len(width) - 1)
    t = (at - x[place]) / width[place]
    rise = width[place] * (slopes[place] * t * (1 - t) ** 2 - slopes[place + 1] * t**2 * (1 - t))
    return float(y[place] * (1 + 2 * t) * (1 - t) ** 2 + y[place + 1] * t**2 * (3 - 2 * t) + rise)


def _end_slope(width: np.ndarray, secant: np.ndarray) -> float:
    if len(width) == 1:
        return float(secant[0])
    slope = ((2 * width[0] + width[1]) * secant[0] - width[0] * secant[1]) / (width[0] + width[1])
    if slope * secant[0] <= 0:
        return 0.0
    if secant[0] * secant[1] <= 0 and abs(slope) > 3 * abs(secant[0]):
        return float(3 * secant[0])
    return float(slope)


def rewards_at(curves: Points, kl: float) -> dict[int, float]:
    """Of the seeds that reach this KL."""
    found = {seed: reward_at(curve, kl) for seed, curve in curves.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def mean_over(curves: Points, levels: Sequence[float]) -> Callable[[Points], Estimate]:
    """Against another arm: the difference averaged over the levels both reach in a seed, one number per seed."""

    def against(baseline: Points) -> Estimate:
        differences = []
        for seed in sorted(curves.keys() & baseline.keys()):
            pairs = [(reward_at(curves[seed], kl), reward_at(baseline[seed], kl)) for kl in levels]
            each = [own - other for own, other in pairs if own is not None and other is not None]
            if each:
                differences.append(float(np.mean(each)))
        return Estimate.of(differences)

    return against
