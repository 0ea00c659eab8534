"""Which token to pad with, such that reading "the last token that is not padding" never reads a text's end away."""

import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from madpo.data.turn_end import turn_end_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = re.compile(r"\bpad\b|_pad_|reserved|unused", re.IGNORECASE)
_NO_BYTE_OF_TEXT = ("ÿ", "<0xFF>")
"""Byte 0xFF, which UTF-8 has nowhere: in the alphabet of byte-level vocabularies, and as SentencePiece falls back."""


def closing_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that a text ends with as it is rendered: EOS or SEP, and what ends the template's turns.

    Not all that generation may stop at: of chat models that is often what the tokenizer pads with, as its users do.
    """
    found = {tokenizer.eos_token_id, tokenizer.sep_token_id, turn_end_id(tokenizer)}
    return {token for token in found if token is not None}


def padding_id(
    tokenizer: "PreTrainedTokenizerBase", *, embeddings: int, closing: Collection[int], configured: int | None
) -> int | None:
    """A token that no text ends with, for models that pool at the last token that differs from it.

    The tokenizer's own, or the configured one, where that holds: they are often EOS, and then transformers pools at the
    token before. Else one that the vocabulary has for such ends; an embedding that no token has; a byte that no text
    has; or BOS, which only begins texts.

    Args:
        tokenizer: The model's.
        embeddings: Rows of the model's input embeddings.
        closing: See `closing_ids`.
        configured: `pad_token_id` of the model's configuration.

    Returns:
        The id; None where the vocabulary has no such token.
    """
    candidates = chain((tokenizer.pad_token_id, configured), _spare(tokenizer), (tokenizer.bos_token_id,))
    fitting = (token for token in candidates if token is not None and 0 <= token < embeddings)
    return next((token for token in fitting if token not in closing), None)


def _spare(tokenizer: "PreTrainedTokenizerBase") -> Iterator[int]:
    """Tokens that texts do not have."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    yield from sorted(token for token, text in added.items() if _RESERVED.search(str(text)))
    vocabulary = tokenizer.get_vocab()
    yield max(vocabulary.values(), default=-1) + 1
    for text in _NO_BYTE_OF_TEXT:
        token = vocabulary.get(text)
        if token is not None and tokenizer.decode([token]) == "\N{REPLACEMENT CHARACTER}":
            yield token
