"""Scores of a stored reward model for rows of any source, as they come."""

import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Self, TypedDict, TypeVar, Unpack

from madpo.data.ranking import ListRule
from madpo.errors import InvalidArgumentError, InvalidPairError, NonFiniteError
from madpo.jobs.base import REWARD
from madpo.rpc import convert
from madpo.rpc.gateway.scoring import ScoringStream
from madpo.types import Completion, PreferencePair, ResponseList, RewardModelInfo, ScoredPair, ScoredResponse
from madpo_client.hub import PREFIX, is_on_hub, open_dataset
from madpo_client.lookup import References
from madpo_client.references import ModelLike
from madpo_client.rows_to_score import GivenRow, PairScore, ResponseScores, RowsToScore
from madpo_client.session import Session
from madpo_client.sources import Source, open_rows

_BATCH_ITEMS, _BATCH_BYTES = 128, 1 << 20
_AHEAD = 2
"""Batches that are on their way while the next one is read."""
_PLACE = re.compile(r"batch\.\w+\[(\d+)\]")

Score = TypeVar("Score", ScoredPair, ScoredResponse)
Result = TypeVar("Result")


class Scored(Generic[Result]):
    """Results in the order of rows, once. Closes by itself at the end; close it, or use it as a context, before.

    Attributes:
        reward_model: The model and the revision of it that all scores are of.
    """

    def __init__(self, reward_model: RewardModelInfo, results: Iterator[Result], close: Callable[[], object]) -> None:
        self.reward_model, self._results, self._close = reward_model, results, close

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop here; the gateway is told."""
        self._close()


class RowReading(TypedDict, total=False):
    """How rows are read; see `madpo_client.datasets.Datasets.upload`."""

    format: str | None
    columns: Mapping[str, str] | None
    lists: ListRule | None
    split: str | None
    config: str | None
    revision: str | None


def open_rows_to_score(source: Source, **reading: Unpack[RowReading]) -> RowsToScore:
    """The rows of a source, as of an upload; what they raise is raised as they are read."""
    split, columns = reading.get("split"), reading.get("columns")
    config, revision = reading.get("config"), reading.get("revision")
    if is_on_hub(source):
        hub_id = str(source).removeprefix(PREFIX)
        source, _ = open_dataset(hub_id, split=split, config=config, revision=revision)
        split = None
    elif config is not None or revision is not None:
        raise InvalidArgumentError(f"config and revision are for datasets of the hub, such as {PREFIX}owner/name")
    numbered = open_rows(source, split=split, format=reading.get("format"), columns=columns)
    return RowsToScore(numbered, columns=columns, lists=reading.get("lists"))


class Scoring:
    """Scores by a gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def pairs(self, reward_model: ModelLike, rows: Iterable[GivenRow]) -> Scored[PairScore]:
        """Scores of rows that are pairs."""
        gateway = self._session.gateway
        stream = self._open(gateway.open_pair_scoring, reward_model)

        def results() -> Iterator[PairScore]:
            for row, (score,) in _Rows(self._session, stream, _pair_items).scored(rows):
                assert isinstance(row.row, PreferencePair)
                yield PairScore(row.given, row.row, score)

        return self._scored(stream, results())

    def responses(self, reward_model: ModelLike, rows: Iterable[GivenRow]) -> Scored[ResponseScores]:
        """Scores of rows that are no pairs."""
        gateway = self._session.gateway
        stream = self._open(gateway.open_response_scoring, reward_model)

        def results() -> Iterator[ResponseScores]:
            for row, scores in _Rows(self._session, stream, _response_items).scored(rows):
                assert isinstance(row.row, (Completion, ResponseList))
                yield ResponseScores(row.given, row.row, scores)

        return self._scored(stream, results())

    def _open(
        self, opened: Callable[[Any], Coroutine[Any, Any, ScoringStream[Score]]], reward_model: ModelLike
    ) -> ScoringStream[Score]:
        return self._session.run(opened(self._references.model(reward_model, kinds=REWARD)))

    def _scored(self, stream: ScoringStream[Any], results: Iterator[Result]) -> Scored[Result]:
        assert stream.reward_model is not None
        return Scored(stream.reward_model, results, lambda: self._session.run(stream.close()))


class _Item(NamedTuple):
    row: GivenRow
    message: Any


class _Rows(Generic[Score]):
    """Sends the items of rows in batches, and puts their scores together again by rows."""

    def __init__(self, session: Session, stream: ScoringStream[Score], items: Callable[[GivenRow], list[Any]]) -> None:
        self._session, self._items = session, items
        self._stream: ScoringStream[Score] = stream

    def scored(self, rows: Iterable[GivenRow]) -> Iterator[tuple[GivenRow, tuple[Score, ...]]]:
        """Rows with one score for each of their items."""
        current: GivenRow | None = None
        scores: list[Score] = []
        for row, score in self._each(rows):
            if row is not current and current is not None:
                yield current, tuple(scores)
                scores = []
            current = row
            scores.append(score)
        if current is not None:
            yield current, tuple(scores)

    def _each(self, rows: Iterable[GivenRow]) -> Iterator[tuple[GivenRow, Score]]:
        sent: deque[list[_Item]] = deque()
        try:
            for batch in _batches(_Item(row, message) for row in rows for message in self._items(row)):
                self._session.run(self._stream.send([item.message for item in batch]))
                sent.append(batch)
                if len(sent) > _AHEAD:
                    yield from self._answered(sent.popleft())
            while sent:
                yield from self._answered(sent.popleft())
            self._session.run(self._stream.finish())
        finally:
            self._session.let_run(self._stream.close())

    def _answered(self, batch: list[_Item]) -> Iterator[tuple[GivenRow, Score]]:
        try:
            scores = self._session.run(self._stream.receive())
        except (InvalidArgumentError, NonFiniteError) as error:
            raise _by_row(error, batch) from error
        for item, score in zip(batch, scores, strict=True):
            yield item.row, score


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size_bytes = 0
    for item in items:
        more_bytes = item.message.ByteSize()
        if batch and (len(batch) == _BATCH_ITEMS or size_bytes + more_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += more_bytes
    if batch:
        yield batch


def _pair_items(row: GivenRow) -> list[Any]:
    if not isinstance(row.row, PreferencePair):
        raise InvalidPairError.in_field(f"row {row.row.row}", "is no preference pair: score its responses instead")
    return [convert.pair_to_proto(row.row)]


def _response_items(row: GivenRow) -> list[Any]:
    if isinstance(row.row, PreferencePair):
        raise InvalidPairError.in_field(f"row {row.row.row}", "is a preference pair: score pairs instead")
    return [convert.response_to_proto(row.row.prompt, each, row.row.options) for each in row.responses]


def _by_row(error: InvalidArgumentError | NonFiniteError, batch: list[_Item]) -> Exception:
    """The error with the number of its row in place of where it stood in its batch."""
    if isinstance(error, NonFiniteError):
        ids = {getattr(item.message, "pair_id", "") or item.message.response_id: item.row.row.row for item in batch}
        numbers = sorted({ids[pair_id] for pair_id in error.pair_ids if pair_id in ids})
        return NonFiniteError(f"row {', '.join(map(str, numbers))}: {error}", error.pair_ids) if numbers else error
    for violation in error.violations:
        place = _PLACE.match(violation.field)
        if place is not None and int(place[1]) < len(batch):
            number = batch[int(place[1])].row.row.row
            return type(error).in_field(f"row {number}{violation.field[place.end() :]}", violation.description)
    return error
