"""Training rows with their tokens. Rows that do not fit are refused by number, never cut."""

from collections.abc import Iterator, Sequence
from typing import Any

from madpo.data.tokenize import Encoded, encode_response
from madpo.errors import InvalidPairError
from madpo.storage.datasets import DatasetStore
from madpo.types import Completion, PreferencePair

EncodedCompletion = tuple[Completion, Encoded]
EncodedPair = tuple[PreferencePair, Encoded, Encoded]
"""A pair with the tokens of its chosen and its rejected sequence."""


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


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` rows."""
    return (rows[first : first + size] for first in range(0, len(rows), size))


def token_count(*sequences: Encoded) -> int:
    """Tokens of some sequences together."""
    return sum(len(sequence.prompt_ids) + len(sequence.response_ids) for sequence in sequences)


def _refuse_overlong(rows: Sequence[tuple[int, Encoded]], max_tokens: int) -> None:
    overlong = sorted({row for row, tokens in rows if token_count(tokens) > max_tokens})
    if overlong:
        longest = max(token_count(tokens) for _, tokens in rows)
        raise InvalidPairError(
            f"{len(overlong)} rows are longer than training.max_tokens={max_tokens} (the longest has {longest}); "
            f"the first: {overlong[:10]} (raise max_tokens, or shorten or remove these rows)"
        )
