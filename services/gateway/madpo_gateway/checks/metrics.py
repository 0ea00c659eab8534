"""What an evaluation asks of evaluators: metrics that one of them has, where any of them says which it has."""

from collections.abc import AsyncIterator

from madpo.jobs.base import Spec
from madpo.jobs.registry import kind_of
from madpo.spelling import did_you_mean
from madpo_gateway.checks.references import Shelves


async def unknown_metrics(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Metrics that no live evaluator has: the field of each, and which there are."""
    asked: tuple[str, ...] = getattr(spec, "metrics", ())
    known = await shelves.queue.announced(kind_of(spec).queue) if asked else None
    if known is None:
        return  # evaluators may come later, with metrics of their own
    for index, name in enumerate(asked):
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            yield (
                f"metrics.{index}",
                f"no evaluator has a metric {name!r}{did_you_mean(name, known) or ';'} they have {there}",
            )
