"""Which rows of a global batch go through the model together: as many as a budget of tokens allows.

The split is a function of the rows and their lengths alone, so it is the same on every rank and after a resume. The
global batch is never changed by it: losses are sums divided by the global denominator.
"""

import heapq
from collections.abc import Sequence

from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import Layout
from madpo.models.packed.layout import packed_length
from madpo_trainer.row_lengths import RowLengths


class MicroBatches:
    """Splits rows by a budget of tokens.

    Args:
        layout: How the model is run.
        budget_tokens: Tokens of one forward pass; a longer row goes alone.
    """

    def __init__(self, layout: Layout, *, budget_tokens: int) -> None:
        self.layout, self.budget_tokens = layout, budget_tokens

    def length(self, group: ResponseGroup) -> int:
        """Tokens that a row takes up in this layout, with the padding among its own responses."""
        if self.layout.name == "padded":
            return len(group.responses) * (len(group.prompt_ids) + max(map(len, group.responses)))
        return packed_length(group, share=self.layout.name == "packed")

    def longest(self, lengths: RowLengths) -> int:
        """Tokens that the longest of many rows takes up, or a little less where its responses begin alike."""
        responses, counts = lengths.responses, lengths.responses.counts
        if self.layout.name == "padded":
            return int((counts * (lengths.prompts + responses.most())).max())
        repeated = 0 if self.layout.name == "packed" else lengths.prompts * (counts - 1)
        return int((lengths.together + repeated).max())

    def split(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Rows by forward pass, each list in the order of `rows`.

        Args:
            rows: At least one; a row may be in it twice.
            lengths: Tokens by row, from `length`.
        """
        # Ties go by place: what is equal in length must not depend on the order of anything else.
        longest_first = sorted(range(len(rows)), key=lambda place: (-lengths[rows[place]], place))
        deal = {"padded": _similar, "alone": _singly}.get(self.layout.name, _even)
        dealt = deal(longest_first, [lengths[row] for row in rows], self.budget_tokens)
        return [[rows[place] for place in sorted(places)] for places in dealt]

    def summary(self) -> dict[str, str | int]:
        """For the record of the job."""
        reason = {"layout_reason": self.layout.reason} if self.layout.reason else {}
        return {"layout": self.layout.name, **reason, "micro_batch_tokens": self.budget_tokens}


def _even(longest_first: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Without padding any rows go together: each goes where there is least, so that all passes are about as long."""
    passes: list[list[int]] = [[] for _ in range(max(1, -(-sum(lengths) // budget)))]
    filled = [(0, number) for number in range(len(passes))]
    for place in longest_first:
        tokens, number = filled[0]
        if tokens and tokens + lengths[place] > budget:
            passes.append([place])
            heapq.heappush(filled, (lengths[place], len(passes) - 1))
        else:
            passes[number].append(place)
            heapq.heapreplace(filled, (tokens + lengths[place], number))
    return [places for places in passes if places]


def _singly(longest_first: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Nothing is won by more rows at once, and ranks that must keep in step run the model equally often for each."""
    return [[place] for place in longest_first]


def _similar(longest_first: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """With padding each row of a pass costs as much as its longest, so rows of similar length go together."""
    passes: list[list[int]] = []
    for place in longest_first:
        if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= budget:
            passes[-1].append(place)
        else:
            passes.append([place])
    return passes
