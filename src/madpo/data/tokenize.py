"""From text or chat messages to token ids, with the boundary between prompt and response in token space."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from madpo.data.limited import within_limits
from madpo.data.loss_mask import LossMask, counted_tokens
from madpo.data.template_clock import TEMPLATE_CLOCK, reads_clock, with_fixed_clock
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import NO_OPTIONS, ChatOptions, Content, Message, content_to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and one response to it, as token ids; the response is what is scored or learned."""

    prompt_ids: list[int]
    response_ids: list[int]
    mask: LossMask = ()
    """Which of the response's tokens count, where not all do."""

    @property
    def counted(self) -> int:
        """Number of response tokens that count."""
        return counted_tokens(self.mask, len(self.response_ids))

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@within_limits
def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Content, options: ChatOptions = NO_OPTIONS
) -> list[int]:
    """The ids to generate a response from; `encode_response` gives the same ones.

    Text gets the special tokens the tokenizer puts in front (one BOS, even if the text brings its own) and no
    EOS. Empty text becomes the BOS, or the EOS of a tokenizer without one: a model needs a token to start from.
    Messages are rendered by the chat template with its generation prompt, the tools and the row's own arguments.

    Raises:
        InvalidPairError: The chat template refuses the messages.
        InvalidArgumentError: Messages, but the tokenizer has no chat template.
    """
    if not isinstance(prompt, str):
        rendered = render_chat(tokenizer, prompt, options, add_generation_prompt=True)
        return encode_texts(tokenizer, [rendered], special_tokens=False)[0]
    return finish_prompt(tokenizer, encode_texts(tokenizer, [prompt], special_tokens=True)[0])


@within_limits
def encode_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, special_tokens: bool
) -> list[list[int]]:
    """Ids of texts, with the special tokens that the tokenizer puts around a text or without."""
    return [
        encoding.ids
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)
    ]


def finish_prompt(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Ids of a text with special tokens to those of a prompt: no EOS, one BOS, and never nothing."""
    end, bos = _end_id(tokenizer), tokenizer.bos_token_id
    if ids and ids[-1] == end and tokenizer("")["input_ids"][-1:] == [end]:
        ids = ids[:-1]
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids or [end if bos is None else bos]


@within_limits
def encode_response(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Content,
    response: Content,
    options: ChatOptions = NO_OPTIONS,
    *,
    prompt_ids: list[int] | None = None,
) -> Encoded:
    """Token ids of a prompt and a response, both text or both messages.

    A text response ends with EOS, appended where the text does not bring it; for messages the chat template alone
    decides. The response is never empty, nothing is truncated; which tokens of several turns count is for
    `madpo.data.encode.encode_rows` to say. `prompt_ids` are those of `encode_prompt`, where they
    are known already.

    Raises:
        InvalidPairError: Text is mixed with messages, or the chat template refuses the messages, or renders them so
            that the prompt is not a prefix of the whole in tokens (no boundary to score from).
        InvalidArgumentError: Messages, but the tokenizer has no chat template.
    """
    if isinstance(prompt, str) and isinstance(response, str):
        ids = encode_texts(tokenizer, [response], special_tokens=False)[0]
        prompt_ids = encode_prompt(tokenizer, prompt) if prompt_ids is None else prompt_ids
        return Encoded(prompt_ids, finish_response(tokenizer, ids, prompt_ids))
    if isinstance(prompt, str) or isinstance(response, str):
        raise InvalidPairError("prompt and response must both be text or both be chat messages, got one of each")
    prompt_ids = encode_prompt(tokenizer, prompt, options) if prompt_ids is None else prompt_ids
    rendered = render_chat(tokenizer, (*prompt, *response), options, add_generation_prompt=False)
    return split(tokenizer, prompt_ids, encode_texts(tokenizer, [rendered], special_tokens=False)[0])


def finish_response(tokenizer: "PreTrainedTokenizerBase", ids: list[int], prompt_ids: list[int]) -> list[int]:
    """Ids of a response's text, with an EOS at their end, and without a BOS that the prompt is already."""
    end, bos = _end_id(tokenizer), tokenizer.bos_token_id
    if bos is not None and prompt_ids == [bos] and ids[:1] == [bos]:
        ids = ids[1:]
    return ids if ids[-1:] == [end] else [*ids, end]


def split(tokenizer: "PreTrainedTokenizerBase", prompt_ids: list[int], ids: list[int]) -> Encoded:
    """The ids of a rendered prompt and response, split where the prompt ends.

    Raises:
        InvalidPairError: They do not begin with the prompt's ids, or there is nothing behind them.
    """
    if ids[: len(prompt_ids)] != prompt_ids:
        raise InvalidPairError(_prefix_mismatch(tokenizer, prompt_ids, ids))
    if len(ids) == len(prompt_ids):
        raise InvalidPairError("the chat template renders nothing for the response")
    return Encoded(prompt_ids, ids[len(prompt_ids) :])


def shared_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many elements two sequences have in common before they part."""
    shortest = min(len(first), len(second))
    return next((index for index in range(shortest) if first[index] != second[index]), shortest)


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id to pad with: the tokenizer's own, else its EOS. Padding is masked, so either is right."""
    return _end_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of everything that decides which ids a text gets; the chat template has its own."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call that padded or truncated, not part of the tokenizer.
    backend.pop("padding", None)
    backend.pop("truncation", None)
    return _sha256(json.dumps([backend, tokenizer.special_tokens_map], sort_keys=True))


def template_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of the chat template, with the time it tells where it reads the clock; of the empty text without one."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return _sha256(f"{text}\0{TEMPLATE_CLOCK.isoformat()}" if reads_clock(text) else text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    # Encoders in the style of BERT close a text with SEP and have no EOS.
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise InvalidArgumentError("the tokenizer has no EOS token to end a response with: set eos_token and save it")
    return int(end)


@within_limits
def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    options: ChatOptions,
    *,
    add_generation_prompt: bool,
) -> str:
    """The text that the chat template makes of messages; its special tokens are part of it.

    The same messages give the same text on any day, see `madpo.data.template_clock`.

    Raises:
        InvalidPairError: The chat template refuses the messages.
        InvalidArgumentError: There is no chat template, or it draws at random.
    """
    if not tokenizer.chat_template:
        raise InvalidArgumentError(
            "the tokenizer has no chat template, so it cannot read messages: give text, or a tokenizer saved with one"
        )
    inputs = options.template_inputs()
    try:
        rendered: str = tokenizer.apply_chat_template(
            content_to_json(tuple(messages)),
            chat_template=with_fixed_clock(tokenizer.get_chat_template(tools=inputs.get("tools"))),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **inputs,
        )
    except InvalidArgumentError:
        raise
    except Exception as error:  # a template is a program of the model's author: it may end in any way
        roles = ", ".join(message.role for message in messages)
        raise InvalidPairError(f"the chat template refuses these messages (roles: {roles}): {error}") from error
    return rendered


def _prefix_mismatch(tokenizer: Any, prompt_ids: list[int], ids: list[int]) -> str:
    same = shared_length(prompt_ids, ids)
    before, expected, found = (
        tokenizer.decode(part)
        for part in (ids[max(0, same - 8) : same], prompt_ids[same : same + 8], ids[same : same + 8])
    )
    return (
        "the chat template does not render prompt and response as a continuation of the prompt: "
        f"after {before!r} the prompt has {expected!r}, the whole has {found!r}"
    )
