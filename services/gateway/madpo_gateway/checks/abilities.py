"""What a job asks of its worker: one that has all its metrics and its judge, where any says what it has.

Only a worker that has them all is given the job, so nothing is lost where that one goes away before.
"""

from collections.abc import AsyncIterator

from madpo.jobs.base import Spec
from madpo.jobs.registry import kind_of
from madpo.spelling import did_you_mean
from madpo_gateway.checks.references import Shelves


async def missing_abilities(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """What no live evaluator has, or none has together: the field of each, and which there are."""
    kind, form = kind_of(spec), spec.model_dump()
    asked = kind.needed_abilities(form)
    evaluators = await shelves.queue.announced(kind.queue) if asked else ()
    if not evaluators or any(known.issuperset(asked) for known in evaluators):
        return  # where none says, one may come later, with metrics of its own
    known = frozenset[str]().union(*evaluators)
    prefixes = tuple(ability.prefix for ability in kind.abilities if ability.prefix)
    for ability in kind.abilities:
        there = sorted(
            name.removeprefix(ability.prefix)
            for name in known
            if name.startswith(ability.prefix or "") and (ability.prefix or not name.startswith(prefixes))
        )
        for field, name in ability.asked(form):
            if name not in there:
                meant = did_you_mean(name, there) or ";"
                yield field, f"no evaluator has a {ability.noun} {name!r}{meant} they have {', '.join(there) or 'none'}"
    if known.issuperset(asked):
        each = "; ".join(", ".join(sorted(names)) or "none" for names in sorted(evaluators, key=sorted))
        field = next(ability.field for ability in kind.abilities if next(ability.asked(form), None))
        yield field, f"no evaluator has all of these, they have: {each} (ask in several jobs)"
