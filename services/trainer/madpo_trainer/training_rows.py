"""Training rows with their tokens. What becomes of rows that do not fit is the job's to say, and counted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.loss_mask import LossMask
from madpo.data.overlong import fit, length
from madpo.data.tokenize import Encoded
from madpo.errors import InvalidPairError
from madpo.jobs.training import Overlong
from madpo.losses.method import Requirements
from madpo.models.logps import ResponseGroup
from madpo.storage.datasets import DatasetStore
from madpo.storage.tokens import TokenStore
from madpo.types import Completion, DatasetRow, PreferencePair, ResponseList
from madpo.types.columns import required_columns
from madpo.worker.phase import BeginPhase, Phase

_NAMED_ROWS = 20
_PHASE_ROWS = 64
"""Rows between two looks at whether the run should end."""

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


@dataclass(slots=True)
class RowCounts:
    """What became of a dataset's rows."""

    rows: int = 0
    truncated: int = 0
    dropped: list[int] = field(default_factory=list)
    """Their numbers."""

    def summary(self) -> dict[str, Any]:
        """For the job's result: dropped rows are counted, and the first of them named."""
        counts = {"rows": self.rows, "truncated": self.truncated, "dropped": len(self.dropped)}
        return counts | ({"dropped_rows": self.dropped[:_NAMED_ROWS]} if self.dropped else {})


class TrainingRows:
    """Reads datasets with their tokens, and fits rows into what the training allows.

    Args:
        datasets: Where rows are stored.
        tokens: Where their ids are kept.
        directory: Of the model whose tokenizer makes ids.
        tokenizer: Loaded from it.
        max_tokens: Longest prompt plus response.
        overlong: What becomes of longer rows.

    Attributes:
        counts: What became of the rows of each dataset that was read.
    """

    def __init__(
        self,
        datasets: DatasetStore,
        tokens: TokenStore,
        *,
        directory: Path,
        tokenizer: Any,
        max_tokens: int,
        overlong: Overlong,
    ) -> None:
        self._datasets, self._tokens = datasets, tokens
        self._directory, self._tokenizer = directory, tokenizer
        self._max_tokens, self._overlong = max_tokens, overlong
        self.counts: dict[str, RowCounts] = {}

    def prepare(self, dataset_id: str, *, scratch: Path, phase: BeginPhase) -> None:
        """Make the ids of a dataset, unless they are there from another training or attempt.

        Args:
            dataset_id: Which.
            scratch: Local directory for files on their way; emptied again.
            phase: Counts rows.

        Raises:
            InvalidPairError: The chat template cannot read rows; names up to twenty.
        """
        if not self._tokens.has(dataset_id, self._tokenizer):
            total = self._datasets.get(dataset_id).rows
            encoded = self._encode(self._datasets.read(dataset_id), phase("tokenizing", total, unit="rows"))
            self._tokens.write(dataset_id, self._tokenizer, encoded, scratch=scratch)

    def completions(self, dataset_id: str | None) -> list[EncodedCompletion]:
        """The rows of a completion dataset; none without an id.

        Raises:
            InvalidPairError: Rows are longer than `max_tokens`, and `overlong` is `error`; or none is left.
        """
        return [
            (row, ids.sequence(0))
            for row, ids in self._fitted(dataset_id, lambda row, ids: ids)
            if isinstance(row, Completion)
        ]

    def pairs(self, dataset_id: str | None) -> list[EncodedPair]:
        """The rows of a preference dataset; none without an id. Raises as `completions` does."""
        return [
            (row, ids.sequence(0), ids.sequence(1))
            for row, ids in self._fitted(dataset_id, lambda row, ids: ids.only((0, 1)))
            if isinstance(row, PreferencePair)
        ]

    def policy_rows(self, dataset_id: str | None, *, lists: bool, gold: bool) -> list[PolicyRow]:
        """The rows of a dataset of pairs or of lists; none without an id.

        Args:
            dataset_id: Its id.
            lists: Keep all responses of a list; else its best and its worst make a pair.
            gold: Read the gold responses as well.

        Raises:
            InvalidPairError: As `completions` does; or a row has no gold response.
        """

        def choose(row: DatasetRow, ids: EncodedRow) -> EncodedRow:
            if isinstance(row, ResponseList):
                return ids if lists else ids.only(row.best_and_worst)
            if gold and len(ids.responses) < 3:
                raise InvalidPairError(f"row {row.row}.gold is missing (give every row a gold response)")
            return ids if gold else ids.only((0, 1))

        return [_policy_row(row, ids, lists=lists) for row, ids in self._fitted(dataset_id, choose)]

    def _fitted(
        self, dataset_id: str | None, choose: Callable[[DatasetRow, EncodedRow], EncodedRow]
    ) -> Iterator[tuple[DatasetRow, EncodedRow]]:
        """Rows with the ids that are looked at, and that fit."""
        if dataset_id is None:
            return
        counts = self.counts[dataset_id] = RowCounts()
        longest, bos_id = 0, self._tokenizer.bos_token_id
        rows = zip(self._datasets.read(dataset_id), self._tokens.read(dataset_id, self._tokenizer), strict=True)
        for row, ids in rows:
            chosen = choose(row, ids)
            fitted = fit(chosen, self._max_tokens, self._overlong, bos_id=bos_id)
            counts.rows += 1
            if fitted is None:
                longest = max(longest, length(chosen))
                counts.dropped.append(row.row)
                continue
            counts.truncated += fitted is not chosen
            yield row, fitted
        if counts.dropped and (self._overlong == "error" or len(counts.dropped) == counts.rows):
            raise self._refusal(counts, longest)

    def _refusal(self, counts: RowCounts, longest: int) -> InvalidPairError:
        return InvalidPairError(
            f"{len(counts.dropped)} of {counts.rows} rows are longer than training.max_tokens={self._max_tokens} "
            f"(the longest has {longest}); the first: {counts.dropped[:10]} "
            "(raise max_tokens, or let training.overlong drop or truncate them: `madpo dataset check` says what is "
            "left then)"
        )

    def _encode(self, rows: Iterable[DatasetRow], phase: Phase) -> Iterator[EncodedRow]:
        errors: list[InvalidPairError] = []
        encoder = RowEncoder(self._directory, self._tokenizer)
        for count, (_, outcome, _) in enumerate(encoder.encode(rows), start=1):
            if count % _PHASE_ROWS == 0:
                phase.advance(_PHASE_ROWS)
            if isinstance(outcome, InvalidPairError):
                errors.append(outcome)
                if len(errors) == _NAMED_ROWS:
                    break
            else:
                yield outcome
        if errors:
            violations = [violation for error in errors for violation in error.violations]
            raise InvalidPairError(f"{len(errors)} rows have no tokens, the first: {errors[0]}", violations)


def require_columns(rows: Sequence[PolicyRow], requirements: Requirements) -> None:
    """Refuse rows that lack a number the method reads. Raises InvalidPairError naming the first."""
    for column in required_columns(requirements):
        for row in rows if column.sort == "number" else ():
            if getattr(row.pair, column.name) is None:
                raise InvalidPairError(f"row {row.pair.row}.{column.name} is missing (give it in every row)")


def token_count(*sequences: Encoded) -> int:
    """Tokens of some sequences together."""
    return sum(len(sequence.prompt_ids) + len(sequence.response_ids) for sequence in sequences)


def _policy_row(row: DatasetRow, ids: EncodedRow, *, lists: bool) -> PolicyRow:
    if isinstance(row, ResponseList) and lists:
        best_and_worst = row.best_and_worst
        return PolicyRow(
            row.list_id, row.as_pair(), ids.prompt_ids, ids.responses, best_and_worst, row.scores, masks=ids.masks
        )
    pair = row.as_pair() if isinstance(row, ResponseList) else row
    assert isinstance(pair, PreferencePair)
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
