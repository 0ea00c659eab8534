"""Lengths of many rows as arrays: what can be decided of a million rows without reading one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from madpo.jobs.training import Overlong
from madpo.models.logps import ResponseGroup


class Ragged(NamedTuple):
    """Numbers of many rows, one row after the other."""

    counts: NDArray[Any]
    """Of each row, integers, [rows]."""
    values: NDArray[Any]
    """[sum of counts]."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """Place of each row's first value, [rows]."""
        starts: NDArray[np.int64] = np.cumsum(self.counts) - self.counts
        return starts

    def most(self) -> NDArray[Any]:
        """The largest value of each row, [rows]; rows have at least one."""
        most: NDArray[Any] = np.maximum.reduceat(self.values, self.starts)
        return most

    def firsts(self) -> "Ragged":
        """The first value of each row alone."""
        return Ragged(np.ones_like(self.counts), self.values[self.starts])

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """Some rows."""
        counts = self.counts[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return Ragged(counts, self.values[np.repeat(self.starts[rows], counts) + within])

    def first_where(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Place within each row of its first chosen value, [rows]; every row has one."""
        places = np.arange(len(self.values)) - np.repeat(self.starts, self.counts)
        return np.minimum.reduceat(np.where(chosen, places, len(self.values)), self.starts)


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of many rows, as far as lengths alone say them."""

    prompts: NDArray[Any]
    """Integers, [rows]."""
    responses: Ragged
    """Of each row its responses, in their order."""

    @classmethod
    def of(cls, groups: Sequence[ResponseGroup]) -> "RowLengths":
        """Of rows that are at hand."""
        counts = np.array([len(group.responses) for group in groups])
        lengths = np.array([len(ids) for group in groups for ids in group.responses])
        return cls(np.array([len(group.prompt_ids) for group in groups]), Ragged(counts, lengths))

    @property
    def together(self) -> NDArray[Any]:
        """Prompt and responses of each row, [rows]."""
        return self.prompts + np.add.reduceat(self.responses.values, self.responses.starts)

    def fitted(self, max_tokens: int, overlong: Overlong) -> "RowLengths":
        """After what is too long was cut as the policy says."""
        room = max_tokens - self.responses.most()
        if overlong == "truncate_prompt":
            return RowLengths(np.minimum(self.prompts, room), self.responses)
        if overlong == "truncate_response":
            room = np.repeat(max_tokens - self.prompts, self.responses.counts)
            return RowLengths(self.prompts, Ragged(self.responses.counts, np.minimum(self.responses.values, room)))
        return self

    def take(self, rows: NDArray[np.int64]) -> "RowLengths":
        """Of some rows."""
        return RowLengths(self.prompts[rows], self.responses.take(rows))
