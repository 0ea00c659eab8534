"""What an evaluation asks of evaluators: one that has all its metrics, where any of them says which it has.

Only an evaluator that has them all is given the job, so nothing is lost where that one goes away before.
"""

from collections.abc import AsyncIterator

from madpo.jobs.base import Spec
from madpo.jobs.registry import kind_of
from madpo.spelling import did_you_mean
from madpo_gateway.checks.references import Shelves


async def unknown_metrics(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Metrics that no live evaluator has, or that none has together: the field of each, and which there are."""
    kind = kind_of(spec)
    asked = kind.needed_abilities(spec.model_dump())
    evaluators = await shelves.queue.announced(kind.queue) if asked else ()
    if not evaluators or any(known.issuperset(asked) for known in evaluators):
        return  # where none says, one may come later, with metrics of its own
    known = frozenset[str]().union(*evaluators)
    for index, name in enumerate(asked):
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            yield (
                f"{kind.abilities_field}.{index}",
                f"no evaluator has a metric {name!r}{did_you_mean(name, known) or ';'} they have {there}",
            )
    if known.issuperset(asked):
        each = "; ".join(", ".join(sorted(names)) or "none" for names in sorted(evaluators, key=sorted))
        yield f"{kind.abilities_field}", f"no evaluator has all of these, they have: {each} (ask in several jobs)"
