"""Text metrics by name: functions that other packages register under the entry-point group `madpo.metrics`."""

import math
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NonFiniteError
from madpo.jobs.evaluation import REWARD_METRIC
from madpo.spelling import did_you_mean
from madpo.types import Content

Metric = Callable[[Sequence[Content], Sequence[str]], Sequence[float]]

GROUP = "madpo.metrics"


def installed_metrics() -> dict[str, EntryPoint]:
    """The registered metrics by name, not loaded."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name != REWARD_METRIC}


def load_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The functions `f(prompts, responses) -> floats` behind the names.

    Raises:
        InvalidArgumentError: No such metric is installed; lists those that are.
        FailedPreconditionError: A metric is registered but its package cannot be imported.
    """
    registered = installed_metrics()
    metrics: dict[str, Metric] = {}
    for name in names:
        if name not in registered:
            known = ", ".join(sorted(registered)) or "none"
            meant = did_you_mean(name, registered)
            raise InvalidArgumentError(f"spec.evaluation.metrics: unknown metric {name!r}; installed: {known}{meant}")
        try:
            metrics[name] = registered[name].load()
        except (ImportError, AttributeError) as error:
            target = registered[name].value
            raise FailedPreconditionError(f"metric {name!r} ({target}) cannot be loaded: {error}") from error
    return metrics


def measure(name: str, metric: Metric, prompts: Sequence[Content], responses: Sequence[str]) -> list[float]:
    """One value per response.

    Raises:
        FailedPreconditionError: The metric answered with another number of values.
        NonFiniteError: It answered NaN or infinity.
    """
    values = [float(value) for value in metric(prompts, responses)]
    if len(values) != len(responses):
        raise FailedPreconditionError(f"metric {name!r} gave {len(values)} values for {len(responses)} responses")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise NonFiniteError(f"metric {name!r} gave {value} for response {index}; it must be finite")
    return values
