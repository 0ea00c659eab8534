"""From texts to the tokens that are scored, in whatever process: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from madpo.data.limited import within_limits
from madpo.data.tokenize import encode_prompt, encode_response, template_sha256, tokenizer_sha256
from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError
from madpo.types import NO_OPTIONS, ChatOptions, Content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Text:
    """One response to score, and the id of the pair or response it belongs to, for error messages."""

    owner_id: str
    prompt: Content
    response: Content
    options: ChatOptions = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of a prompt (none when all of it had to go) and of its response, and whether some had to go."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole text."""
        return self.prompt + self.response


def digests(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Of the tokenizer and of its chat template."""
    return tokenizer_sha256(tokenizer), template_sha256(tokenizer)


@within_limits
def encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text], *, max_tokens: int, unembedded: UnembeddedTokens
) -> list[Tokens]:
    """Tokenize, each prompt once.

    A text over `max_tokens` loses the start of its prompt first, then the end of its response; a BOS at the beginning
    stays.

    Raises:
        InvalidPairError: The model's template cannot render a text, or it has a token that the model does not embed;
            names its owner.
        InvalidArgumentError: No text can be.
    """
    encoded = []
    prompts: dict[tuple[Content, ChatOptions], list[int]] = {}
    for text in texts:
        try:
            key = (text.prompt, text.options)
            if key not in prompts:
                prompts[key] = encode_prompt(tokenizer, *key)
            tokens = _fitted(tokenizer, text, prompts[key], max_tokens=max_tokens)
            unembedded.require_none(tokens.prompt, tokens.response)
            encoded.append(tokens)
        except InvalidPairError as error:
            violation = FieldViolation(text.owner_id, str(error))
            raise InvalidPairError(f"{text.owner_id}: {error}", [violation]) from error
        except InvalidArgumentError:
            raise
        except Exception as error:  # tokenizers raises Exception itself, and more than that
            message = f"{text.owner_id}: the tokenizer fails: {type(error).__name__}: {error}"
            raise InvalidPairError(message, [FieldViolation(text.owner_id, message)]) from error
    return encoded


def _fitted(tokenizer: "PreTrainedTokenizerBase", text: Text, prompt_ids: list[int], *, max_tokens: int) -> Tokens:
    encoded = encode_response(tokenizer, text.prompt, text.response, text.options, prompt_ids=prompt_ids)
    bos = encoded.prompt_ids[:1] if encoded.prompt_ids[:1] == [tokenizer.bos_token_id] else []
    rest = encoded.prompt_ids[len(bos) :]
    kept = encoded.response_ids[: max_tokens - len(bos)]
    room = max_tokens - len(bos) - len(kept)
    ids = [*bos, *rest[max(0, len(rest) - room) :]]
    return Tokens(tuple(ids), tuple(kept), truncated=len(ids) + len(kept) < len(encoded))
