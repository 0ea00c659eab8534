"""From stored datasets to a training's rows. What becomes of rows that do not fit is the job's to say, and counted."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.overlong import fit, keep_whole, other_policy
from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import CorruptObjectError, InvalidPairError
from madpo.jobs.training import Overlong
from madpo.model_files.context_limit import directory_limit
from madpo.model_files.vocabulary import embedding_count
from madpo.spelling import number_of
from madpo.storage import keys
from madpo.storage.datasets import DatasetStore
from madpo.storage.files import Transfer, unwatched
from madpo.storage.local_copies import LocalCopies
from madpo.storage.tokens import TokenStore, token_prefix
from madpo.types import Completion, DatasetKind, DatasetRow, PreferencePair
from madpo.worker.phase import BeginPhase, Phase, counted
from madpo_trainer.fitted_rows import EncodedCompletion, EncodedPair, FittedRows, PolicyRow, policy_row
from madpo_trainer.mapped_rows import MappedRows
from madpo_trainer.row_lengths import Ragged, RowLengths

logger = logging.getLogger(__name__)

T = TypeVar("T", covariant=True)

_NAMED_ROWS = 20


@dataclass(slots=True)
class RowCounts:
    """What became of a dataset's rows."""

    rows: int = 0
    truncated: int = 0
    dropped: int = 0
    dropped_rows: list[int] = field(default_factory=list)
    """Numbers of the first of them."""

    def summary(self) -> dict[str, Any]:
        """For the job's result: dropped rows are counted, and the first of them named."""
        counts = {"rows": self.rows, "truncated": self.truncated, "dropped": self.dropped}
        return counts | ({"dropped_rows": self.dropped_rows} if self.dropped else {})


class TrainingRows:
    """Reads datasets with their tokens, and fits rows into what the training allows.

    Args:
        datasets: Where rows are stored.
        tokens: Where their ids are kept.
        copies: Of this host for both, shared by all ranks and jobs.
        directory: Of the model whose tokenizer makes ids.
        tokenizer: Loaded from it.
        max_tokens: Longest prompt plus response.
        overlong: What becomes of longer rows.
        transfer: Told of what is fetched.

    Attributes:
        copies: As given.
        max_tokens: As given.
        counts: What became of the rows of each dataset that was read.
    """

    def __init__(
        self,
        datasets: DatasetStore,
        tokens: TokenStore,
        *,
        copies: LocalCopies,
        directory: Path,
        tokenizer: Any,
        max_tokens: int,
        overlong: Overlong,
        transfer: Transfer = unwatched,
    ) -> None:
        self._datasets, self._tokens, self.copies = datasets, tokens, copies
        self._directory, self._tokenizer = directory, tokenizer
        self.max_tokens, self._overlong, self._transfer = max_tokens, overlong, transfer
        self.counts: dict[str, RowCounts] = {}

    def prepare(self, dataset_id: str, *, scratch: Path, phase: BeginPhase) -> None:
        """Make the ids of a dataset, unless another training or attempt has, and copy them to this host.

        Ids that were damaged in the store are made again.

        Args:
            dataset_id: Which.
            scratch: Local directory for files on their way; emptied again.
            phase: Counts rows.

        Raises:
            InvalidPairError: The chat template cannot read rows; names up to twenty.
            Interrupted: The run is asked to stop; the ids that are stored by then stay.
        """
        self._make(dataset_id, scratch=scratch, phase=phase)
        try:
            self._fetch_tokens(dataset_id)
        except CorruptObjectError as error:
            logger.warning("damaged token ids are made again", extra={"error": str(error)})
            self._tokens.delete(dataset_id, self._tokenizer)
            self._make(dataset_id, scratch=scratch, phase=phase)

    def _make(self, dataset_id: str, *, scratch: Path, phase: BeginPhase) -> None:
        if self._tokens.has(dataset_id, self._tokenizer):
            return
        total = self._datasets.get(dataset_id).rows
        first = min(total, self._tokens.rows_kept(dataset_id, self._tokenizer))
        rows = self._datasets.read(dataset_id, first=first)
        encoded = self._encode(rows, phase("tokenizing", total, unit="rows", done=first))
        self._tokens.write(dataset_id, self._tokenizer, encoded, scratch=scratch, first=first)

    def completions(self, dataset_id: str) -> FittedRows[EncodedCompletion]:
        """The rows of a completion dataset.

        Raises:
            InvalidPairError: Rows are too long, and `overlong` is `error`; none is left; or tokens have no embedding.
        """
        mapped = self._map(dataset_id)

        def make(row: DatasetRow, ids: EncodedRow) -> EncodedCompletion:
            return cast(Completion, row), ids.sequence(0)

        return self._fitted(dataset_id, mapped, _same_places(len(mapped), 1), make)

    def pairs(self, dataset_id: str) -> FittedRows[EncodedPair]:
        """The rows of a preference dataset. Raises as `completions` does."""
        mapped = self._map(dataset_id)

        def make(row: DatasetRow, ids: EncodedRow) -> EncodedPair:
            return cast(PreferencePair, row), ids.sequence(0), ids.sequence(1)

        return self._fitted(dataset_id, mapped, _same_places(len(mapped), 2), make)

    def policy_rows(self, dataset_id: str, *, lists: bool, gold: bool) -> FittedRows[PolicyRow]:
        """The rows of a dataset of pairs or of lists.

        Args:
            dataset_id: Its id.
            lists: Keep all responses of a list; else its best and its worst make a pair.
            gold: Read the gold responses as well.

        Raises:
            InvalidPairError: As `completions` does; or a row has no gold response.
        """
        mapped = self._map(dataset_id)
        if self._datasets.get(dataset_id).kind is DatasetKind.LIST:
            places = _all_places(mapped) if lists else _best_and_worst(mapped.scores())
        else:
            places = _same_places(len(mapped), 3 if gold else 2)
            missing = np.flatnonzero(mapped.response_lengths().counts < places.counts)
            if len(missing):
                number = mapped.number(int(missing[0]))
                raise InvalidPairError(f"row {number}.gold is missing (give every row a gold response)")
        return self._fitted(dataset_id, mapped, places, partial(policy_row, lists=lists), lists=lists)

    def leave_out(self, dataset_id: str, rows: FittedRows[PolicyRow], places: Sequence[int]) -> FittedRows[PolicyRow]:
        """The rows but some, which count as dropped."""
        counts = self.counts[dataset_id]
        named = [rows.all_pairs[place].row for place in places[:_NAMED_ROWS]]
        counts.dropped += len(places)
        counts.dropped_rows = sorted([*counts.dropped_rows, *named])[:_NAMED_ROWS]
        return rows.without(places)

    def _map(self, dataset_id: str) -> MappedRows:
        """The dataset and its tokens on this host; fetched by the first rank that comes."""
        rows = self.copies.fetch(
            keys.dataset(dataset_id),
            lambda directory: self._datasets.fetch(dataset_id, directory, transfer=self._transfer),
        )
        return MappedRows(self._datasets.get(dataset_id).kind, rows, self._fetch_tokens(dataset_id))

    def _fetch_tokens(self, dataset_id: str) -> Path:
        return self.copies.fetch(
            token_prefix(dataset_id, self._tokenizer),
            lambda directory: self._tokens.fetch(dataset_id, self._tokenizer, directory, transfer=self._transfer),
        )

    def _fit(self, ids: EncodedRow) -> EncodedRow:
        fitted = fit(ids, self.max_tokens, self._overlong, bos_id=self._tokenizer.bos_token_id)
        assert fitted is not None, f"row {ids.row} was found to fit"
        return fitted

    def _fitted(
        self,
        dataset_id: str,
        mapped: MappedRows,
        places: Ragged,
        make: Callable[[DatasetRow, EncodedRow], T],
        *,
        lists: bool = False,
    ) -> FittedRows[T]:
        """The rows that fit with the responses at these places, by their lengths alone where those say enough."""
        starts = places.starts

        def whole(index: int) -> EncodedRow:
            chosen = places.values[starts[index] : starts[index] + places.counts[index]].tolist()
            return mapped.encoded(index).only(chosen)

        every = mapped.response_lengths()
        responses = Ragged(places.counts, every.values[np.repeat(every.starts, places.counts) + places.values])
        prompts, longest = mapped.prompt_lengths(), responses.most()
        is_long = prompts + longest > self.max_tokens
        fits = ~is_long
        if self._overlong == "truncate_prompt":
            fits |= longest < self.max_tokens
        elif self._overlong == "truncate_response":
            for index in np.flatnonzero(is_long & (prompts < self.max_tokens)):
                fits[index] = fit(whole(int(index)), self.max_tokens, self._overlong, bos_id=None) is not None
        dropped = np.flatnonzero(~fits)
        named = [mapped.number(int(index)) for index in dropped[:_NAMED_ROWS]]
        counts = self.counts[dataset_id] = RowCounts(len(mapped), int((fits & is_long).sum()), len(dropped), named)
        if len(dropped) and (self._overlong == "error" or len(dropped) == len(mapped)):
            raise self._refusal(counts, int((prompts + longest).max()))
        kept = np.flatnonzero(fits)
        unembedded = UnembeddedTokens(self._tokenizer, embedding_count(self._directory))
        unembedded.require_rows_without(mapped.with_ids_from(unembedded.lowest_id, kept))
        lengths = RowLengths(prompts, responses).take(kept).fitted(self.max_tokens, self._overlong)
        return FittedRows(mapped, kept, lengths, lambda index: self._fit(whole(index)), make, lists=lists)

    def _refusal(self, counts: RowCounts, longest: int) -> InvalidPairError:
        remedy = keep_whole(self.max_tokens, directory_limit(self._directory))
        return InvalidPairError(
            f"{counts.dropped} of {counts.rows} rows are longer than training.max_tokens={self.max_tokens} "
            f"(the longest has {longest}); the first: {', '.join(map(str, counts.dropped_rows[:10]))} ({remedy}, or "
            f"{other_policy(self._overlong)}: `madpo dataset check` says what is left then)"
        )

    def _encode(self, rows: Iterable[DatasetRow], phase: Phase) -> Iterator[EncodedRow]:
        errors: list[InvalidPairError] = []
        encoder = RowEncoder(self._directory, self._tokenizer)
        for _, outcome, _ in counted(encoder.encode(rows), phase):
            if isinstance(outcome, InvalidPairError):
                errors.append(outcome)
                if len(errors) == _NAMED_ROWS:
                    break
            elif not errors:  # nothing is kept beyond a gap
                yield outcome
        if errors:
            violations = [violation for error in errors for violation in error.violations]
            count = f"{number_of(len(errors), 'row')}{' or more' * (len(errors) == _NAMED_ROWS)}"
            raise InvalidPairError(f"{count} cannot be tokenized, the first: {errors[0]}", violations)


def _same_places(rows: int, count: int) -> Ragged:
    """The first responses of every row."""
    return Ragged(np.full(rows, count, np.int32), np.tile(np.arange(count, dtype=np.int32), rows))


def _all_places(mapped: MappedRows) -> Ragged:
    counts = mapped.response_lengths().counts
    return Ragged(counts, np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts))


def _best_and_worst(scores: Ragged) -> Ragged:
    """As `ResponseList.best_and_worst`, of all rows."""
    best, worst = (
        scores.first_where(each.values == np.repeat(each.most(), each.counts))
        for each in (scores, Ragged(scores.counts, -scores.values))
    )
    return Ragged(np.full(len(scores.counts), 2), np.stack([best, worst], axis=1).ravel())
