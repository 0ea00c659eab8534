"""The learning rate of a step: a function of the step alone, so that a resumed run needs no memory of it."""

import math
from collections.abc import Callable, Mapping

from madpo.jobs.training import OptimizerParameters

_SHAPES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
    "constant": lambda done: 1.0,
}
"""Share of the peak by the share of the steps behind the warm-up that are done, in [0, 1)."""


def warmup_steps(parameters: OptimizerParameters, total_steps: int) -> int:
    """Steps below the peak at the beginning of a run of so many."""
    if parameters.warmup_steps is not None:
        return parameters.warmup_steps
    return round((parameters.warmup_ratio or 0.0) * total_steps)


def learning_rate(parameters: OptimizerParameters, step: int, total_steps: int) -> float:
    """What a step is taken with.

    Step i of w steps of warm-up has (i + 1) / (w + 1) of the peak: never 0, and the step behind them is the first at
    the peak. The rest is as in transformers: it would come to its end one step after the last.

    Args:
        parameters: Of the job.
        step: The step, from 0.
        total_steps: Of the whole job.
    """
    peak, warmup = parameters.learning_rate, warmup_steps(parameters, total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    left = _SHAPES[parameters.schedule]((step - warmup) / max(1, total_steps - warmup))
    floor = parameters.min_learning_rate_ratio
    return peak * (floor + (1.0 - floor) * left)
