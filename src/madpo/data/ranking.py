"""Ranked responses as pairs, by a rule that is chosen and never guessed.

    keep         one list row, for methods that read lists
    pairs        every two responses of different score make a pair: n responses without ties make n (n - 1) / 2
    best_worst   one pair: the best response against the worst

Responses are taken best first, those of one score in the file's order: of a pair, the chosen one's place decides the
order, then the rejected one's. Scores that measure something are kept as the rewards of each pair; ranks are not. A
row's weight goes to each of its pairs, undivided. Two responses of different score are the same pair under both rules.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Literal, get_args

from madpo.data.forms.form import Ranked
from madpo.errors import FieldViolation, InvalidArgumentError

ListRule = Literal["keep", "pairs", "best_worst"]


def parse_list_rule(name: str) -> ListRule | None:
    """The rule of this name; None for "", which chooses none. Raises InvalidArgumentError for another name."""
    if not name:
        return None
    for known in get_args(ListRule):
        if name == known:
            return known  # type: ignore[no-any-return]
    message = f"must be one of {', '.join(get_args(ListRule))}, got {name!r:.60}"
    raise InvalidArgumentError(f"lists {message}", [FieldViolation("lists", message)])


def ranked_pairs(ranked: Ranked, rule: Literal["pairs", "best_worst"]) -> Iterator[tuple[int, int]]:
    """Places of the chosen and the rejected response of each pair, in order."""
    order = sorted(range(len(ranked.scores)), key=lambda place: -ranked.scores[place])
    if rule == "best_worst":
        # Of several worst ones the file's first, as of several best ones.
        worst = min(range(len(ranked.scores)), key=lambda place: ranked.scores[place])
        yield order[0], worst
        return
    for better, worse in combinations(order, 2):
        if ranked.scores[better] > ranked.scores[worse]:
            yield better, worse
