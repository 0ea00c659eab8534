"""Distributions of lengths: exact quantiles, and histograms with round edges."""

import math
from array import array

from madpo.data.check.report import Distribution, Histogram

_SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 24


class Numbers:
    """Collects whole numbers, eight bytes each."""

    def __init__(self) -> None:
        self._values = array("q")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: int) -> None:
        """One more."""
        self._values.append(value)

    def distribution(self) -> Distribution | None:
        """How they are spread; None without any."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        count = len(ordered)
        return Distribution(
            count=count,
            mean=math.fsum(ordered) / count,
            smallest=ordered[0],
            largest=ordered[-1],
            quantiles={f"{share:g}": ordered[math.ceil(share * count) - 1] for share in _SHARES},
            histogram=_histogram(ordered),
        )


def _histogram(ordered: list[int]) -> Histogram:
    """Bins of one round width up to the 99th percentile; the last takes all above, or outliers would hide the rest."""
    lowest, usual = ordered[0], ordered[math.ceil(0.99 * len(ordered)) - 1]
    width = _round_width((usual - lowest + 1) / _BINS)
    start = lowest // width * width
    bins = (usual - start) // width + 1
    counts = [0] * bins
    for value in ordered:
        counts[min((value - start) // width, bins - 1)] += 1
    edges = [start + width * index for index in range(bins)] + [max(start + width * bins, ordered[-1])]
    return Histogram(edges=tuple(edges), counts=tuple(counts))


def _round_width(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `width`."""
    magnitude = 1
    while True:
        for step in (1, 2, 5):
            if step * magnitude >= width:
                return step * magnitude
        magnitude *= 10


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a probability (Wilson, 1927)."""
    z = 1.959964
    ratio, spread = successes / trials, z * z / trials
    center = (ratio + spread / 2) / (1 + spread)
    half = z * math.sqrt(ratio * (1 - ratio) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)
