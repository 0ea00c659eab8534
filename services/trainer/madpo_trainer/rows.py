"""Training rows with their tokens. Rows that do not fit are refused by number, never cut."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from madpo.data.tokenize import Encoded, encode_response
from madpo.errors import InvalidPairError
from madpo.losses.method import Requirements
from madpo.models.logps import ResponseGroup
from madpo.storage.datasets import DatasetStore
from madpo.types import Completion, Content, DatasetRow, PreferencePair, ResponseList

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

    @property
    def group(self) -> ResponseGroup:
        """The responses behind their prompt, without the gold one."""
        return ResponseGroup(self.prompt_ids, self.responses)

    @property
    def tokens(self) -> int:
        """Of all sequences, the prompt counted with each."""
        sequences = [*self.responses, *([self.gold_ids] if self.gold_ids is not None else [])]
        return sum(len(self.prompt_ids) + len(ids) for ids in sequences)


def read_completions(
    datasets: DatasetStore, dataset_id: str | None, tokenizer: Any, *, max_tokens: int
) -> list[EncodedCompletion]:
    """The rows of a completion dataset; none without an id.

    Raises:
        InvalidPairError: Rows are longer than `max_tokens`.
    """
    if dataset_id is None:
        return []
    rows = [row for row in datasets.read(dataset_id) if isinstance(row, Completion)]
    encoded = [(row, encode_response(tokenizer, row.prompt, row.completion, row.options)) for row in rows]
    _refuse_overlong([(row.row, tokens) for row, tokens in encoded], max_tokens)
    return encoded


def read_pairs(datasets: DatasetStore, dataset_id: str | None, tokenizer: Any, *, max_tokens: int) -> list[EncodedPair]:
    """The rows of a preference dataset; none without an id.

    Raises:
        InvalidPairError: Rows are longer than `max_tokens`.
    """
    if dataset_id is None:
        return []
    encoded = [
        (
            pair,
            encode_response(tokenizer, pair.prompt, pair.chosen, pair.options),
            encode_response(tokenizer, pair.prompt, pair.rejected, pair.options),
        )
        for pair in datasets.read(dataset_id)
        if isinstance(pair, PreferencePair)
    ]
    _refuse_overlong([(pair.row, tokens) for pair, *both in encoded for tokens in both], max_tokens)
    return encoded


def read_policy_rows(
    datasets: DatasetStore, dataset_id: str | None, tokenizer: Any, *, max_tokens: int, lists: bool, gold: bool
) -> list[PolicyRow]:
    """The rows of a dataset of pairs or of lists; none without an id.

    Args:
        datasets: Where it is stored.
        dataset_id: Its id.
        tokenizer: Of the policy.
        max_tokens: Longest prompt plus response.
        lists: Keep all responses of a list; else its best and its worst make a pair.
        gold: Read the gold responses as well.

    Raises:
        InvalidPairError: Rows are longer than `max_tokens`, or have no gold response.
    """
    if dataset_id is None:
        return []
    rows = [_policy_row(tokenizer, row, lists=lists, gold=gold) for row in datasets.read(dataset_id)]
    sequences = ((row, ids) for row in rows for ids in (*row.responses, *([row.gold_ids] if row.gold_ids else [])))
    _refuse_overlong([(row.pair.row, Encoded(row.prompt_ids, ids)) for row, ids in sequences], max_tokens)
    return rows


def require_columns(rows: Sequence[PolicyRow], requirements: Requirements) -> None:
    """Refuse rows that lack a number the method reads. Raises InvalidPairError naming the first."""
    needed = ("chosen_uncertainty", "rejected_uncertainty") if requirements.uncertainty else ()
    for name in (*needed, *(("semantic_distance",) if requirements.semantic_distance else ())):
        for row in rows:
            if getattr(row.pair, name) is None:
                raise InvalidPairError(f"row {row.pair.row}.{name} is missing (give it in every row)")


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` rows."""
    return (rows[first : first + size] for first in range(0, len(rows), size))


def token_count(*sequences: Encoded) -> int:
    """Tokens of some sequences together."""
    return sum(len(sequence.prompt_ids) + len(sequence.response_ids) for sequence in sequences)


def _policy_row(tokenizer: Any, row: DatasetRow, *, lists: bool, gold: bool) -> PolicyRow:
    if isinstance(row, ResponseList) and lists:
        prompt_ids, responses = _encode(tokenizer, row, row.responses)
        return PolicyRow(row.list_id, row.as_pair(), prompt_ids, responses, row.best_and_worst, row.scores)
    pair = row.as_pair() if isinstance(row, ResponseList) else row
    assert isinstance(pair, PreferencePair)
    if gold and pair.gold is None:
        raise InvalidPairError(f"row {pair.row}.gold is missing (give every row a gold response)")
    asked = (pair.chosen, pair.rejected, *([pair.gold] if gold and pair.gold is not None else []))
    prompt_ids, (chosen, rejected, *rest) = _encode(tokenizer, pair, asked)
    return PolicyRow(pair.pair_id, pair, prompt_ids, (chosen, rejected), gold_ids=rest[0] if rest else None)


def _encode(
    tokenizer: Any, row: PreferencePair | ResponseList, responses: Iterable[Content]
) -> tuple[list[int], tuple[list[int], ...]]:
    encoded = [encode_response(tokenizer, row.prompt, response, row.options) for response in responses]
    return encoded[0].prompt_ids, tuple(each.response_ids for each in encoded)


def _refuse_overlong(rows: Sequence[tuple[int, Encoded]], max_tokens: int) -> None:
    overlong = sorted({row for row, tokens in rows if token_count(tokens) > max_tokens})
    if overlong:
        longest = max(token_count(tokens) for _, tokens in rows)
        raise InvalidPairError(
            f"{len(overlong)} rows are longer than training.max_tokens={max_tokens} (the longest has {longest}); "
            f"the first: {overlong[:10]} (raise max_tokens, or shorten or remove these rows)"
        )
