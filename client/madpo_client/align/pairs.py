"""The pairs that mattered in the trainings of a recipe, from their ledgers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.evaluation.verdict import PairShown, PairsThatMattered, PolicyVerdict
from madpo.losses.registry import get_method, parse_params
from madpo_client.job import JobHandle

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 3
_MOST_POLICIES = 6


def pairs_that_mattered(
    policies: Sequence[PolicyVerdict], handles: Mapping[str, JobHandle]
) -> tuple[list[PairsThatMattered], list[str]]:
    """Of each policy whose method reads margins, of several seeds the first; and why some are not shown."""
    found: list[PairsThatMattered] = []
    seen: set[str] = set()
    by_id = {handle.id: handle for handle in handles.values()}
    for policy in policies:
        config = parse_params(policy.method, policy.params, path="method")
        kind = f"{policy.method}/{policy.params}/{len(policy.rounds)}"
        if not get_method(policy.method, path="method").requirements(config).margin or kind in seen:
            continue
        seen.add(kind)
        if len(found) == _MOST_POLICIES:
            return found, [
                f"the pairs of {_MOST_POLICIES} policies are shown; `madpo ledger` shows those of the others"
            ]
        try:
            found.append(_of(policy.name, by_id[policy.training_job_ids[-1]]))
        except (FailedPreconditionError, NotFoundError) as error:
            return found, [f"the pairs that mattered are not shown: {error}"]
    return found, []


def _of(policy: str, training: JobHandle) -> PairsThatMattered:
    from madpo_client.ledger.query import last_visits, matching, ordered
    from madpo_client.ledger.summary import CONTRADICTS, summarize

    ledger = training.ledger()
    contradicted = next((group for group in summarize(ledger) if group.verdict == CONTRADICTS), None)
    visits = matching(last_visits(ledger), "reward_margin IS NOT NULL")
    heaviest = ordered(visits, "weight", descending=True).slice(0, _SHOWN)
    least = ordered(matching(visits, "reward_margin < 0"), "reward_margin", descending=False).slice(0, _SHOWN)
    return PairsThatMattered(
        policy=policy,
        pairs=len(last_visits(ledger)),
        contradicted_ratio=contradicted.pair_share if contradicted else 0.0,
        contradicted_weight_ratio=contradicted.weight_share if contradicted else 0.0,
        heaviest=_shown(training, heaviest),
        contradicted=_shown(training, least),
    )


def _shown(training: JobHandle, ledger: "pa.Table") -> tuple[PairShown, ...]:
    if not len(ledger):
        return ()
    columns = ("row", "reward_margin", "weight", "implicit_margin", "prompt", "chosen", "rejected")
    return tuple(PairShown(**row) for row in training.ledger_text(ledger).select(columns).to_pylist())
