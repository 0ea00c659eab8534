"""Prompts as a policy reads them."""

import sys
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from madpo.data.tokenize import encode_prompt
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import PromptOnly


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[PromptOnly], *, limit: int | None, max_new_tokens: int
) -> list[list[int] | None]:
    """Token ids of every prompt, None where it leaves no room for `max_new_tokens` within `limit`.

    Chat prompts are rendered with the tokenizer's template.

    Raises:
        InvalidPairError: The chat template refuses a prompt; names its row.
        InvalidArgumentError: A prompt is a chat and the tokenizer has no template; or none leaves room.
    """
    encoded = [_encode(tokenizer, asked) for asked in prompts]
    room = sys.maxsize if limit is None else limit - max_new_tokens
    if encoded and min(map(len, encoded)) > room:
        raise InvalidArgumentError(
            f"the shortest prompt has {min(map(len, encoded))} tokens; with max_new_tokens={max_new_tokens} every one "
            f"exceeds the {limit} tokens that the model can read (lower sampling.max_new_tokens)"
        )
    return [ids if len(ids) <= room else None for ids in encoded]


def _encode(tokenizer: PreTrainedTokenizerBase, asked: PromptOnly) -> list[int]:
    try:
        return encode_prompt(tokenizer, asked.prompt, asked.options)
    except InvalidPairError as error:
        raise InvalidPairError.in_field(f"row {asked.row}" if asked.row else "prompt", str(error)) from error
