"""What a training reads: rows with their tokens, each made when its step comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from madpo.data.encode import EncodedRow
from madpo.data.loss_mask import LossMask
from madpo.data.tokenize import Encoded
from madpo.errors import InvalidPairError
from madpo.losses.method import Requirements
from madpo.models.logps import ResponseGroup
from madpo.types import Completion, DatasetRow, PreferencePair, ResponseList
from madpo.types.columns import required_columns
from madpo_trainer.mapped_rows import LazyRows, MappedRows
from madpo_trainer.row_lengths import RowLengths

T = TypeVar("T", covariant=True)

EncodedCompletion = tuple[Completion, Encoded]
EncodedPair = tuple[PreferencePair, Encoded, Encoded]
"""A pair with the tokens of its chosen and its rejected sequence."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """What a policy learns from: a prompt with two responses, or with a list of them."""

    row_id: str
    """Of the pair or the list."""
    pair: PreferencePair
    """Of a list its best response against its worst."""
    prompt_ids: list[int]
    responses: tuple[list[int], ...]
    """Tokens of chosen and rejected response, or of all of a list."""
    chosen_and_rejected: tuple[int, int] = (0, 1)
    """Places of the pair's responses."""
    scores: tuple[float, ...] = ()
    """Of the list's responses, higher is better; none for a pair."""
    gold_ids: list[int] | None = None
    """Tokens of the gold response, where it is asked for."""
    masks: tuple[LossMask, ...] = ()
    """Which tokens of each response count; none where all of all do."""
    gold_mask: LossMask = ()

    @property
    def group(self) -> ResponseGroup:
        """The responses behind their prompt, without the gold one."""
        return ResponseGroup(self.prompt_ids, self.responses, self.masks)

    @property
    def chosen(self) -> ResponseGroup:
        """The chosen response alone behind the prompt."""
        place = self.chosen_and_rejected[0]
        return ResponseGroup(self.prompt_ids, (self.responses[place],), self.masks[place : place + 1])

    def asked(self, *, gold: bool) -> ResponseGroup:
        """The responses behind their prompt, and behind them the gold one where it is wanted."""
        if not gold:
            return self.group
        masks = (*(self.masks or [()] * len(self.responses)), self.gold_mask)
        return ResponseGroup(self.prompt_ids, (*self.responses, self.gold_ids or ()), masks)


class FittedRows(LazyRows[T], Generic[T]):
    """The rows of a dataset that fit into a training, each read when its step comes.

    Args:
        mapped: All rows of the dataset.
        kept: Numbers of those that fit, from 0, [rows].
        lengths: Tokens of their prompts, and of each of their responses, as they are after cutting.
        ids: The tokens of a row, cut to fit, given its number in the dataset.
        make: What the training makes of a row and its tokens.
        lists: Rows have the responses of lists, in their order; else the chosen one comes first.
    """

    def __init__(
        self,
        mapped: MappedRows,
        kept: NDArray[np.int64],
        lengths: RowLengths,
        ids: Callable[[int], EncodedRow],
        make: Callable[[DatasetRow, EncodedRow], T],
        *,
        lists: bool = False,
    ) -> None:
        super().__init__(len(kept), self._row, remember=True)
        self._ids, self._make_of = ids, make
        self._mapped, self._kept, self.lengths, self.lists = mapped, kept, lengths, lists
        self.chosen: NDArray[np.int64] | None = None  # their numbers, where more than lengths decided which they are

    def _row(self, index: int) -> T:
        number = int(self._kept[index])
        return self._make_of(self._mapped.row(number), self._ids(number))

    @property
    def all_ids(self) -> LazyRows[EncodedRow]:
        """The tokens of the rows alone: their text, most of the work of reading a row, is not looked at."""
        return LazyRows(len(self), lambda index: self._ids(int(self._kept[index])))

    @property
    def all_pairs(self) -> LazyRows[PreferencePair]:
        """The rows as pairs, without their tokens; of a list its best response against its worst."""
        return LazyRows(len(self), lambda index: _as_pair(self._mapped.row(int(self._kept[index]))))

    def without(self, places: Sequence[int]) -> "FittedRows[T]":
        """The rows but some."""
        stay = np.setdiff1d(np.arange(len(self)), np.array(places, dtype=np.int64))
        left = FittedRows(
            self._mapped, self._kept[stay], self.lengths.take(stay), self._ids, self._make_of, lists=self.lists
        )
        left.chosen = left._kept
        return left

    @property
    def has_masks(self) -> bool:
        """Whether there may be responses of which not all tokens count."""
        return self._mapped.has_masks

    def numbers(self, column: str) -> NDArray[Any]:
        """A column of numbers, [rows]; NaN where a row has none."""
        return self._mapped.numbers(column)[self._kept]


def row_groups(rows: Sequence[PolicyRow]) -> LazyRows[ResponseGroup]:
    """The responses of rows behind their prompts, without the gold ones."""
    if isinstance(rows, FittedRows):
        ids, lists = rows.all_ids, rows.lists
        return LazyRows(len(rows), lambda row: group_of(ids[row] if lists else ids[row].only((0, 1))))
    return LazyRows(len(rows), lambda row: rows[row].group)


def group_of(ids: EncodedRow) -> ResponseGroup:
    """The responses of a row behind their prompt."""
    return ResponseGroup(ids.prompt_ids, ids.responses, ids.masks)


def lengths_of(rows: Sequence[Any], groups: Sequence[ResponseGroup]) -> RowLengths:
    """Lengths of rows: those that are known, or else of the groups that they are run as."""
    return rows.lengths if isinstance(rows, FittedRows) else RowLengths.of(groups)


def chosen_lengths(rows: Sequence[PolicyRow]) -> RowLengths:
    """Of prompts with their chosen responses alone."""
    if isinstance(rows, FittedRows) and not rows.lists:
        responses = rows.lengths.responses
        return RowLengths(rows.lengths.prompts, responses.firsts())
    return RowLengths.of(LazyRows(len(rows), lambda row: rows[row].chosen))


def require_columns(rows: FittedRows[PolicyRow], requirements: Requirements) -> None:
    """Refuse rows that lack a number the method reads. Raises InvalidPairError naming the first."""
    for column in required_columns(requirements):
        if column.sort != "number":
            continue
        missing = np.flatnonzero(np.isnan(rows.numbers(column.name)))
        if len(missing):
            number = int(rows.numbers("row")[missing[0]])
            raise InvalidPairError(f"row {number}.{column.name} is missing (give it in every row)")


def policy_row(row: DatasetRow, ids: EncodedRow, *, lists: bool) -> PolicyRow:
    """A row with its tokens as a policy learns from it; a list becomes a pair unless `lists`."""
    if isinstance(row, ResponseList) and lists:
        best_and_worst = row.best_and_worst
        return PolicyRow(
            row.list_id, row.as_pair(), ids.prompt_ids, ids.responses, best_and_worst, row.scores, masks=ids.masks
        )
    pair = _as_pair(row)
    two, has_gold = ids.only((0, 1)), len(ids.responses) > 2
    return PolicyRow(
        pair.pair_id,
        pair,
        ids.prompt_ids,
        two.responses,
        gold_ids=ids.responses[2] if has_gold else None,
        masks=two.masks,
        gold_mask=ids.mask(2) if has_gold else (),
    )


def _as_pair(row: DatasetRow) -> PreferencePair:
    pair = row.as_pair() if isinstance(row, ResponseList) else row
    assert isinstance(pair, PreferencePair)
    return pair
