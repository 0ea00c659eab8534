"""Rounds of variants, and what may be said of them.

A ratio is taken within each round, of CPU-seconds; the figure is the median over rounds. It is a headline only when
rounds agree: not when the largest ratio is more than 25 % over the smallest, and not when the losses of two variants
differ.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.meters import conditions
from bench.scoring.task import ScoringTask
from bench.training.task import Task
from bench.turns import Variant

WIDEST_SPREAD = 0.25
LOSS_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-5


def run_training(task: Task, variants: Mapping[str, str], *, logs: Path) -> dict[str, Any]:
    """Train every variant for the task's rounds, in turns.

    Args:
        task: The same for all.
        variants: Module of each variant's process, by its name.
        logs: Directory for what the processes print.
    """
    result = _take_turns(task, variants, title=task.size, logs=logs)
    return result | {"void": why_void(result["variants"])}


def run_scoring(task: ScoringTask, variants: Mapping[str, str], *, logs: Path) -> dict[str, Any]:
    """Have every variant score the task's pairs, in turns; else as `run_training`."""
    result = _take_turns(task, variants, title="scoring", logs=logs)
    scores = {name: [each.pop("scores") for each in entry["rounds"]] for name, entry in result["variants"].items()}
    first, *others = scores
    apart = {
        name: max(
            abs(a - b)
            for mine, its in zip(scores[first], scores[name], strict=True)
            for a, b in zip(mine, its, strict=True)
        )
        for name in others
    }
    wrong = [
        f"{name} differs from {first} by {most:.1e}" for name, most in apart.items() if not most <= SCORE_TOLERANCE
    ]
    return result | {"score_difference": apart, "void": "; ".join(wrong) or None}


def _take_turns(task: Task | ScoringTask, variants: Mapping[str, str], *, title: str, logs: Path) -> dict[str, Any]:
    started: dict[str, Variant] = {}
    result: dict[str, Any] = {"before": conditions(), "variants": {}}
    try:
        for name, module in variants.items():
            command = [sys.executable, "-m", module, name, task.argument()]
            started[name] = Variant(name, command, threads=task.threads, log=logs / f"{title}-{name}.log")
            result["variants"][name] = {"start": started[name].ready(), "rounds": []}
            print(f"{title}: {name} is warm", flush=True)
        for number in range(task.rounds):
            for name, variant in started.items():
                sample = variant.turn()
                result["variants"][name]["rounds"].append(sample)
                print(f"{title}: round {number + 1} of {task.rounds}, {name}: {sample['cpu_s']:.2f} CPU-s", flush=True)
    finally:
        for variant in started.values():
            variant.close()
    return result | {"after": conditions()}


def why_void(variants: Mapping[str, Any]) -> str | None:
    """Why variants cannot be compared: they saw other tokens, or their losses differ; None when they can."""
    first, *others = variants
    for name in others:
        if variants[name]["start"]["tokens"] != variants[first]["start"]["tokens"]:
            return f"{name} has other tokens than {first}"
        for step, (a, b) in enumerate(zip(_losses(variants[first]), _losses(variants[name]), strict=True)):
            if not abs(a - b) <= LOSS_TOLERANCE:
                return f"loss of step {step + 1}: {first} {a:.6f}, {name} {b:.6f}"
    return None


def _losses(entry: Mapping[str, Any]) -> list[float]:
    return [loss for part in (entry["start"], *entry["rounds"]) for loss in part["losses"]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure over rounds."""

    median: float
    least: float
    most: float

    @property
    def agrees(self) -> bool:
        """Whether the rounds are near enough to each other for a headline."""
        return self.most <= (1 + WIDEST_SPREAD) * self.least

    @property
    def span(self) -> str:
        """Median and extremes, whatever they are."""
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"

    def __str__(self) -> str:
        extremes = f"({self.least:.2f} to {self.most:.2f})"
        return self.span if self.agrees else f"no figure: rounds differ too much {extremes}"


def ratio(variants: Mapping[str, Any], over: str, under: str, field: str) -> Ratio:
    """A field of one variant's rounds over that of another's."""
    pairs = zip(variants[over]["rounds"], variants[under]["rounds"], strict=True)
    return spread([a[field] / b[field] for a, b in pairs])


def spread(values: Sequence[float]) -> Ratio:
    """Median and extremes."""
    return Ratio(median(values), min(values), max(values))
