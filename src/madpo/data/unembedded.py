"""Tokens that a tokenizer makes and a model has no embedding for: they were added, and the model not resized.

Rows without them can be used; a row with one would end the run by an index out of range, on a GPU the whole process.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from madpo.errors import InvalidPairError
from madpo.spelling import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED_ROWS = 20

ADVICE = (
    "leave them out of the rows, or resize the model's embeddings (model.resize_token_embeddings(len(tokenizer))) and "
    "upload it again"
)


class UnembeddedTokens:
    """The tokens beyond a model's embeddings; false where there are none.

    Args:
        tokenizer: The model's.
        embeddings: Rows of the model's input embeddings; None where they are not known.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", embeddings: int | None) -> None:
        self._embeddings = embeddings
        vocabulary = {} if embeddings is None else tokenizer.get_vocab()
        self._tokens = {number: token for token, number in vocabulary.items() if number >= (embeddings or 0)}

    def __bool__(self) -> bool:
        return bool(self._tokens)

    @property
    def lowest_id(self) -> int:
        """All such tokens have this id or a larger one."""
        return min(self._tokens, default=sys.maxsize)

    def first(self, *sequences: Sequence[int]) -> str | None:
        """The first such token in sequences of ids; None where there is none."""
        if not self:
            return None
        return next((self._tokens[number] for ids in sequences for number in ids if number in self._tokens), None)

    def require_none(self, *sequences: Sequence[int]) -> None:
        """Raises InvalidPairError, naming the token, where there is one."""
        if (token := self.first(*sequences)) is not None:
            raise InvalidPairError(self._problem(token))

    def require_rows_without(self, rows: Iterable[tuple[int, Sequence[Sequence[int]]]]) -> None:
        """Refuse rows with such tokens.

        Args:
            rows: Numbers of rows, each with its sequences of ids. Not read where there are no such tokens.

        Raises:
            InvalidPairError: With one violation per row, up to twenty.
        """
        if not self:
            return
        errors: list[InvalidPairError] = []
        for number, sequences in rows:
            if (token := self.first(*sequences)) is not None:
                errors.append(InvalidPairError.in_field(f"row {number}", self._problem(token)))
                if len(errors) == _NAMED_ROWS:
                    break
        if errors:
            violations = [violation for error in errors for violation in error.violations]
            others = f" (and {number_of(len(errors) - 1, 'more row')})" if len(errors) > 1 else ""
            raise InvalidPairError(f"{errors[0]}{others}", violations)

    def _problem(self, token: str) -> str:
        return f"the model has no embedding for the token {token!r} (it has {self._embeddings}): {ADVICE}"
