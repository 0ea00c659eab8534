"""What a job measured step by step, for plots: as few points as a plot can show."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from madpo.errors import NotFoundError
from madpo.types import JobProgress
from madpo_client import JobHandle

_METRICS = "metrics.jsonl"
_BESIDES = frozenset({"step", "epoch"})


def curves(job: JobHandle, *, points: int) -> dict[str, Any]:
    """Every figure of a job over its steps.

    Args:
        job: A training; of others there are none.
        points: At most so many; of long runs every so manieth step is shown, and the last.

    Returns:
        `{"steps": [...], "series": {name: [value or None, ...]}}`.
    """
    rows: dict[int, Mapping[str, Any]] = {}
    with suppress(NotFoundError):
        for line in job.read_artifact(_METRICS).splitlines():
            row = json.loads(line)
            rows[row["step"]] = row
    for event in job.events():  # what came since the last checkpoint
        if isinstance(event.event, JobProgress) and event.event.metrics and event.event.step not in rows:
            rows[event.event.step] = event.event.metrics
    kept = [(step, rows[step]) for step in thinned(sorted(rows), points)]
    names = sorted({name for _, row in kept for name in row} - _BESIDES)
    series = {name: [_number(row.get(name)) for _, row in kept] for name in names}
    return {
        "steps": [step for step, _ in kept],
        "series": {name: values for name, values in series.items() if any(value is not None for value in values)},
    }


def thinned(steps: Sequence[int], points: int) -> Iterable[int]:
    """Evenly chosen ones, the first and the last among them."""
    if len(steps) <= points:
        return steps
    return [steps[round(number * (len(steps) - 1) / (points - 1))] for number in range(points)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
