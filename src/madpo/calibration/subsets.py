"""How a reward model does on the parts of a benchmark, such as RewardBench (Lambert et al., arXiv:2403.13787).

A part is what a row's `source` names; files of RewardBench's form say `subset`. Sections gather parts as RewardBench
version 1 does: a section's accuracy is the mean over its pairs, where math-prm counts as much as all code together; the
score is the mean over sections. Parts that RewardBench does not know are measured and belong to no section.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from madpo.calibration.figures import Vector, wins
from madpo.calibration.report import SectionScore, SubsetAccuracy, Subsets

MOST_SUBSETS = 200
"""More different sources are no parts of a benchmark."""
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_CODE = tuple(f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust"))
_MATH = "math-prm"
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": (_MATH, *_CODE),
}


def measure_subsets(margins: ArrayLike, sources: Sequence[str | None]) -> Subsets | None:
    """Accuracy by part, and by section.

    Args:
        margins: Chosen minus rejected reward of each pair [N].
        sources: The part that each is of.

    Returns:
        None where no pair names a part, or where there are too many to be parts of a benchmark.
    """
    names = sorted({source for source in sources if source})
    if not names or len(names) > MOST_SUBSETS:
        return None
    values, places = np.asarray(margins, dtype=np.float64), np.array([source or "" for source in sources])
    subsets = {name: _accuracy(values[places == name]) for name in names}
    sections = {
        section: score
        for section, parts in SECTIONS.items()
        if (score := _section({name: subsets[name] for name in parts if name in subsets}, parts))
    }
    return Subsets(subsets=subsets, sections=sections, score=_mean(list(sections.values())))


def _accuracy(margins: Vector) -> SubsetAccuracy:
    """With Wilson's interval, which stays honest where all pairs agree."""
    won = wins(margins)
    n, share = len(won), float(won.mean())
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half_width = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    interval = (max(0.0, center - half_width), min(1.0, center + half_width))
    return SubsetAccuracy(accuracy=share, ci=interval, pairs=n, ties=int((margins == 0).sum()))


def _section(found: Mapping[str, SubsetAccuracy], parts: Sequence[str]) -> SectionScore | None:
    if not found:
        return None
    weights = {name: float(subset.pairs) for name, subset in found.items()}
    code = sum(weights.get(name, 0.0) for name in _CODE)
    if _MATH in weights and code:
        weights[_MATH] = code
    total = sum(weights.values())
    mean = sum(weights[name] * subset.accuracy for name, subset in found.items()) / total
    variance = sum((weights[name] / total) ** 2 * _variance(subset) for name, subset in found.items())
    missing = tuple(name for name in parts if name not in found)
    return SectionScore(accuracy=mean, ci=_interval(mean, variance), missing=missing)


def _mean(sections: Sequence[SectionScore]) -> SectionScore | None:
    if not sections:
        return None
    mean = sum(section.accuracy for section in sections) / len(sections)
    half_widths = [(section.ci[1] - section.ci[0]) / 2 for section in sections]
    variance = sum((half_width / _Z) ** 2 for half_width in half_widths) / len(sections) ** 2
    return SectionScore(accuracy=mean, ci=_interval(mean, variance))


def _variance(subset: SubsetAccuracy) -> float:
    """Of an accuracy, with two successes and two failures more (Agresti and Coull): not 0 where all pairs agree."""
    n = subset.pairs + 4
    share = (subset.accuracy * subset.pairs + 2) / n
    return share * (1 - share) / n


def _interval(mean: float, variance: float) -> tuple[float, float]:
    half_width = _Z * math.sqrt(variance)
    return max(0.0, mean - half_width), min(1.0, mean + half_width)
