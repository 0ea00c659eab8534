"""Responses under the prompts of other rows, from which KTO estimates how far the policy is from the reference.

Which response stands behind which prompt follows from the global batch alone, so it is the same however the batch is
split; and from the schedule, so the reference's log-probs of all of them are computed before the first step.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from madpo.data.order import Schedule
from madpo.errors import InvalidPairError
from madpo.models.logps import ResponseGroup
from madpo_trainer.fitted_rows import PolicyRow, chosen_lengths
from madpo_trainer.mapped_rows import LazyRows
from madpo_trainer.row_lengths import RowLengths
from madpo_trainer.stored_reference import StoredLogps


class Mismatched:
    """The mismatched responses of every step of a run.

    Args:
        rows: Training rows.
        schedule: Of the run.
        max_tokens: Longest prompt plus response.

    Raises:
        InvalidPairError: Nothing fits behind the prompt of some row.
    """

    def __init__(self, rows: Sequence[PolicyRow], schedule: Schedule, *, max_tokens: int) -> None:
        self._rows, self._schedule = rows, schedule
        self._lengths: RowLengths = chosen_lengths(rows)
        self._room = max_tokens - self._lengths.prompts
        self._max_tokens = max_tokens
        steps = range(schedule.total_steps)
        self._partners = np.concatenate([self._partners_of(np.array(schedule.batch(step))) for step in steps])
        self._reference: StoredLogps | None = None

    def groups(self, step: int, rows: Sequence[int]) -> list[ResponseGroup]:
        """The prompts of some rows of a step's batch, each with the chosen response of another row."""
        return [self._group(row, position) for row, position in zip(rows, self._positions(step, rows), strict=True)]

    def compute_reference(self, compute: Callable[[Sequence[ResponseGroup], NDArray[np.int64]], StoredLogps]) -> None:
        """Have the reference's log-probs of all groups of all steps computed, or looked up.

        Args:
            compute: Is given the groups, step by step, and the tokens of each.
        """
        size, positions = self._schedule.batch_size, len(self._partners)
        steps = range(self._schedule.total_steps)
        rows = np.concatenate([np.array(self._schedule.batch(step)) for step in steps])
        # A batch that straddles two epochs may hold a row twice; both stand for its last place.
        of = [place + step * size for step in steps for place in _last_places(self._schedule.batch(step))]
        groups = LazyRows(positions, lambda position: self._group(int(rows[position]), of[position]))
        tokens = self._lengths.prompts[rows] + self._lengths.responses.values[self._partners[of]]
        self._reference = compute(groups, tokens)

    def reference_logps(self, step: int, rows: Sequence[int]) -> Tensor:
        """Of the responses of `groups`, float32, on the CPU."""
        assert self._reference is not None
        return self._reference.logps(self._positions(step, rows)).logps

    def _group(self, row: int, position: int) -> ResponseGroup:
        chosen = self._rows[int(self._partners[position])].chosen
        return chosen._replace(prompt_ids=self._rows[row].prompt_ids)

    def _positions(self, step: int, rows: Sequence[int]) -> list[int]:
        places = {row: place for place, row in enumerate(self._schedule.batch(step))}
        return [step * self._schedule.batch_size + places[row] for row in rows]

    def _partners_of(self, batch: NDArray[np.int64]) -> NDArray[np.int32]:
        """Whose chosen responses follow the prompts of a batch: the next in the batch, else in the dataset, that fits.

        Nearly always the very next one does.
        """
        found = np.roll(batch, -1)
        tokens = self._lengths.responses.values
        for place in np.flatnonzero((found == batch) | (tokens[found] > self._room[batch])):
            row = int(batch[place])
            everything = np.arange(len(tokens))
            after = np.concatenate([batch[place + 1 :], batch[:place], everything[row + 1 :], everything[:row]])
            fits = np.flatnonzero((after != row) & (tokens[after] <= self._room[row]))
            if not len(fits):
                raise InvalidPairError(
                    f"row {self._rows[row].pair.row}: no chosen response of another row fits behind its prompt within "
                    f"training.max_tokens={self._max_tokens} (remove it, or raise max_tokens if the model reads more)"
                )
            found[place] = after[fits[0]]
        return found.astype(np.int32)


def _last_places(batch: Sequence[int]) -> list[int]:
    """Of each row of a batch the last place at which it stands."""
    last = {row: place for place, row in enumerate(batch)}
    return [last[row] for row in batch]
