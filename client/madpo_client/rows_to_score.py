"""Rows of any source as texts for a reward model, read as uploads read them, and as they are with scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from madpo.data.columns import ColumnMap
from madpo.data.forms.registry import KNOWN_COLUMNS, SIGNATURES
from madpo.data.ranking import ListRule
from madpo.data.records import RowReader, parse_rows
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import (
    Completion,
    Content,
    DatasetRow,
    PreferencePair,
    PromptOnly,
    ResponseList,
    ScoredPair,
    ScoredResponse,
    content_to_json,
)

REPLACED = frozenset({"margin", "chosen_reward", "rejected_reward"})
"""Columns of pairs that a scored row has anew; those of a file that are read as one of them are left out."""


@dataclass(frozen=True, slots=True)
class PairScore:
    """A pair of a source and what the reward model says of it.

    Attributes:
        given: The row as its source has it.
        pair: What was read from it; `pair.row` is its number, from 1.
        score: Both rewards and their margin in raw logits, tokens, and what was read only in part.
    """

    given: Mapping[str, Any]
    pair: PreferencePair
    score: ScoredPair

    @property
    def reward_margin(self) -> float:
        """Chosen minus rejected reward, in reward-model logits."""
        return self.score.reward_margin


@dataclass(frozen=True, slots=True)
class ResponseScores:
    """A row of a source and what the reward model says of its responses.

    Attributes:
        given: The row as its source has it.
        row: What was read from it; `row.row` is its number, from 1.
        scores: One for each response, in order: rewards in raw logits, tokens, and whether it was read only in part.
    """

    given: Mapping[str, Any]
    row: Completion | ResponseList
    scores: tuple[ScoredResponse, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Of the responses, in order, in reward-model logits."""
        return tuple(score.reward for score in self.scores)


@dataclass(frozen=True, slots=True)
class GivenRow:
    """A row as its source has it, and what was read from it."""

    given: Mapping[str, Any]
    row: DatasetRow

    @property
    def responses(self) -> tuple[Content, ...]:
        """The texts of a row that is no pair, each with a score of its own."""
        match self.row:
            case Completion(_, completion):
                return (completion,)
            case ResponseList(_, responses):
                return responses
        raise AssertionError(f"row {self.row.row} has no single responses")


class RowsToScore:
    """The rows of a source, one after the other, all of one kind.

    Beside what is uploaded, a row may be a prompt with a `response`, and of a list the `scores` may be missing: those
    that it has are not looked at, unless a rule makes pairs by them.

    Args:
        numbered: The values, as `open_rows` gives them.
        columns: Our names of columns to the source's, where they differ.
        lists: What becomes of ranked responses.

    Raises:
        InvalidArgumentError: A name in `columns` means nothing; while iterating, rows that cannot be used, by number.
    """

    def __init__(
        self, numbered: Any, *, columns: Mapping[str, str] | None = None, lists: ListRule | None = None
    ) -> None:
        self._numbered, self._columns, self._lists = numbered, dict(columns or {}), lists
        self._reader = RowReader(columns, lists=lists)
        self._names = ColumnMap(self._columns, known=KNOWN_COLUMNS)
        self._given: Mapping[str, Any] = {}
        self._rows = self._read()
        self._seen: list[GivenRow] = []

    def __iter__(self) -> Iterator[GivenRow]:
        while self._seen:
            yield self._seen.pop()
        yield from self._rows

    @property
    def are_pairs(self) -> bool:
        """Whether the first row is a pair; it is read for that, and comes all the same."""
        if not self._seen:
            self._seen.append(next(self._rows))
        return isinstance(self._seen[0].row, PreferencePair)

    def _read(self) -> Iterator[GivenRow]:
        try:
            for row in parse_rows(self._views(), self._reader):
                if isinstance(row, PromptOnly):
                    raise InvalidPairError.in_field(f"row {row.row}", "has no response: there is nothing to score")
                yield GivenRow(self._given, row)
        except InvalidArgumentError as error:
            raise self._numbered.explain(error) from error
        finally:
            self._numbered.close()

    def scored_pair(self, scored: PairScore) -> dict[str, Any]:
        """A row with its rewards and their margin, to be written; an upload takes them."""
        score = scored.score
        found = {
            "chosen_reward": score.chosen_reward,
            "rejected_reward": score.rejected_reward,
            "reward_margin": score.reward_margin,
        }
        if self._lists is not None:
            return _plain(scored.pair) | found
        kept = {name: value for name, value in scored.given.items() if self._names.name(name) not in REPLACED}
        return kept | found

    def scored_responses(self, scored: ResponseScores) -> dict[str, Any]:
        """A row with its reward, or of a list its scores, to be written; an upload takes the scores."""
        if isinstance(scored.row, ResponseList):
            return _plain(scored.row) | {"scores": list(scored.rewards)}
        return {**scored.given, "reward": scored.rewards[0]}

    def _views(self) -> "_Views":
        return _Views(self)

    def _view(self, value: Any) -> Any:
        """A value as an upload would have to have it."""
        if not isinstance(value, Mapping):
            return value
        self._given = value
        given = {name for name, cell in value.items() if cell is not None}
        responses, scores = (self._columns.get(name, name) for name in ("responses", "scores"))
        if self._lists in (None, "keep") and isinstance(value.get(responses), list):
            return {**value, scores: list(range(len(value[responses])))}
        if "response" in given and "completion" not in self._columns and given & SIGNATURES == {"prompt"}:
            return {**value, "completion": value["response"]}
        return value


class _Views:
    """Numbered values, seen; the iterator outlives a bad row as the one below it does."""

    def __init__(self, rows: RowsToScore) -> None:
        self._rows = rows

    def __iter__(self) -> "_Views":
        return self

    def __next__(self) -> tuple[int, Any]:
        number, value = next(self._rows._numbered)
        return number, self._rows._view(value)


def _plain(row: DatasetRow) -> dict[str, Any]:
    """A row in our own form: what a list of a file has become."""
    contents = {name: getattr(row, name, None) for name in ("prompt", "chosen", "rejected")}
    value = {name: content_to_json(content) for name, content in contents.items() if content is not None}
    if isinstance(row, ResponseList):
        value["responses"] = [content_to_json(response) for response in row.responses]
    value |= {name: told for name in ("weight", "id", "source") if (told := getattr(row, name, None)) is not None}
    inputs = row.options.template_inputs()
    if (tools := inputs.pop("tools", None)) is not None:
        value["tools"] = tools
    return value | ({"chat_template_kwargs": inputs} if inputs else {})
