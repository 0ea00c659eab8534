"""Which pairs the reward model contradicted, and what that did: a ledger summed up."""

from dataclasses import dataclass

import pyarrow as pa

from madpo_client.ledger.query import asking

AGREES, CONTRADICTS, UNDECIDED, NO_MARGIN = "agrees", "contradicts", "undecided", "no margin"
"""What the reward model says of a pair's label: its margin is above, below or equal to 0, or was never known."""

_GROUPS = """
    WITH pairs AS (
        SELECT
            max(reward_margin) AS margin,
            CASE WHEN margin > 0 THEN 'agrees' WHEN margin < 0 THEN 'contradicts' WHEN margin = 0 THEN 'undecided'
                ELSE 'no margin' END AS verdict,
            count(*) AS visits,
            sum(weight) AS weight,
            min(weight) AS lowest_weight,
            max(weight) AS highest_weight,
            arg_min(implicit_margin, step) AS first_implicit_margin,
            arg_max(implicit_margin, step) AS last_implicit_margin,
            arg_min(loss, step) AS first_loss,
            arg_max(loss, step) AS last_loss
        FROM ledger GROUP BY "row"
    )
    SELECT
        verdict,
        count(*) AS pairs,
        sum(visits)::BIGINT AS visits,
        count(*) / any_value((SELECT count(*) FROM pairs)) AS pair_share,
        sum(weight) / any_value((SELECT sum(weight) FROM pairs)) AS weight_share,
        avg(margin) AS reward_margin,
        sum(weight) / sum(visits) AS weight,
        min(lowest_weight) AS lowest_weight,
        max(highest_weight) AS highest_weight,
        avg(first_implicit_margin) AS first_implicit_margin,
        avg(last_implicit_margin) AS last_implicit_margin,
        avg((1 + sign(first_implicit_margin)) / 2) AS first_accuracy,
        avg((1 + sign(last_implicit_margin)) / 2) AS last_accuracy,
        avg(first_loss) AS first_loss,
        avg(last_loss) AS last_loss
    FROM pairs GROUP BY verdict
    ORDER BY list_position(['agrees', 'contradicts', 'undecided', 'no margin'], verdict)
"""


@dataclass(frozen=True, slots=True)
class Group:
    """The pairs of one verdict. Means are over its pairs, the weight's over their visits."""

    verdict: str
    pairs: int
    visits: int
    pair_share: float
    weight_share: float
    """Of the weight that all visits of all pairs had."""
    reward_margin: float | None
    """Reward-model logits."""
    weight: float
    lowest_weight: float
    highest_weight: float
    first_implicit_margin: float
    """At each pair's first visit, before that step's update; `last_` is at its last."""
    last_implicit_margin: float
    first_accuracy: float
    """Share of pairs whose chosen response the policy prefers, relative to the reference; half for a tie."""
    last_accuracy: float
    first_loss: float
    last_loss: float


def summarize(ledger: pa.Table) -> list[Group]:
    """The groups that have pairs: agreeing, contradicted, undecided, without a margin."""
    with asking(ledger) as connection:
        result = connection.sql(_GROUPS)
        return [Group(**dict(zip(result.columns, row, strict=True))) for row in result.fetchall()]
