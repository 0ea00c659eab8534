"""What may be wrong with a row once a tokenizer and a chat template have made tokens of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from madpo.data.check.report import Severity
from madpo.data.check.row_texts import turns
from madpo.data.encode import EncodedRow, Outcome, RenderedRow, row_responses
from madpo.data.tokenize import encode_texts, render_chat, shared_length
from madpo.errors import InvalidPairError
from madpo.types import ChatOptions, DatasetRow, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_TOKENS = 8
_MAX_SPECIALS = 64
"""Some tokenizers have a thousand special tokens, nearly all of them reserved for nothing."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that rows can have, and what to say of it."""

    severity: Severity
    title: str
    advice: str


FAULTS = {
    "template_refuses": Fault(
        "error",
        "the chat template refuses the messages",
        "it says why; many want user and assistant in turn, and a system message first or not at all",
    ),
    "prompt_not_prefix": Fault(
        "error",
        "the tokens of the prompt are not the beginning of those of prompt and response",
        "the loss would be taken on the wrong tokens; change the template so that what it renders before a response "
        "does not depend on the response",
    ),
    "empty_response": Fault("error", "the chat template renders nothing for a response", "look at these messages"),
    "doubled_bos": Fault(
        "error", "begins with two BOS tokens", "the template writes one and the text, or the tokenizer, another"
    ),
    "doubled_eos": Fault("error", "a response ends with two end tokens", "leave the end token out of the text"),
    "no_end": Fault(
        "warning",
        "a response does not end with a special token",
        "a model that never sees an end does not learn to stop; let the template end an assistant's turn with EOS",
    ),
    "assistant_prompt": Fault(
        "error",
        "the prompt ends with an assistant's turn, and the template begins another one behind it",
        "move that turn to the beginning of both responses",
    ),
    "dropped_content": Fault(
        "warning",
        "the chat template leaves out something that was said",
        "the model trains on another conversation than the one given",
    ),
    "dropped_tools": Fault(
        "error", "the chat template renders no tools", "take a template that knows tools, or rows without them"
    ),
    "special_tokens_in_text": Fault(
        "warning",
        "a text spells out a special token",
        "it becomes that token, and may end a turn or begin one; escape it unless that is meant",
    ),
}


def examine(
    tokenizer: "PreTrainedTokenizerBase", row: DatasetRow, outcome: Outcome, chat: RenderedRow
) -> list[tuple[str, str]]:
    """The faults of one row, each with an example where there is something to see."""
    if isinstance(outcome, InvalidPairError):
        return [_why_not_encoded(tokenizer, outcome, chat)]
    faults = list(_special_token_faults(tokenizer, row, outcome))
    if chat.prompt:
        faults += _template_faults(tokenizer, row, chat)
    return faults


def token_diff(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Where a prompt's tokens part from those of the whole, in a form for people."""
    same = shared_length(prompt_ids, ids)
    before = ["...", *_spelled(tokenizer, ids[max(0, same - _SHOWN_TOKENS) : same])]
    return "\n".join(
        [
            f"token {same}, behind",
            f"    both    {' '.join(before)}",
            f"  - prompt  {_some(tokenizer, prompt_ids[same:])}",
            f"  + whole   {_some(tokenizer, ids[same:])}",
        ]
    )


def _why_not_encoded(
    tokenizer: "PreTrainedTokenizerBase", error: InvalidPairError, chat: RenderedRow
) -> tuple[str, str]:
    if not chat.prompt:
        return "template_refuses", error.violations[0].description
    prompt_ids, *sequences = encode_texts(tokenizer, [chat.prompt, *chat.sequences], special_tokens=False)
    for ids in sequences:
        if ids[: len(prompt_ids)] != prompt_ids:
            return "prompt_not_prefix", token_diff(tokenizer, prompt_ids, ids)
    return "empty_response", ""


def _special_token_faults(
    tokenizer: "PreTrainedTokenizerBase", row: DatasetRow, encoded: EncodedRow
) -> Iterator[tuple[str, str]]:
    specials, bos = _specials(tokenizer), tokenizer.bos_token_id
    if bos is not None and encoded.prompt_ids[:2] == [bos, bos]:
        yield "doubled_bos", _some(tokenizer, encoded.prompt_ids)
    for ids in encoded.responses:
        end = _without_space(tokenizer, ids)
        if len(end) >= 2 and end[-1] == end[-2] and end[-1] in specials:
            yield "doubled_eos", _some(tokenizer, end[-_SHOWN_TOKENS:])
            break
        if not end or end[-1] not in specials:
            yield "no_end", "... " + _some(tokenizer, end[-_SHOWN_TOKENS:])
            break
    spelled = list(specials.values())[:_MAX_SPECIALS]
    for content in (row.prompt, *row_responses(row)):
        texts = (content,) if isinstance(content, str) else tuple(message.content for message in content)
        found = [token for token in spelled if any(token in text for text in texts)]
        if found:
            yield "special_tokens_in_text", " ".join(found)
            break


def _template_faults(
    tokenizer: "PreTrainedTokenizerBase", row: DatasetRow, chat: RenderedRow
) -> Iterator[tuple[str, str]]:
    prompt = turns(row.prompt)
    if prompt[-1].role == "assistant":
        yield "assistant_prompt", "... " + chat.prompt[-200:]
    for response, rendered in zip(row_responses(row), chat.sequences, strict=True):
        if missing := _first_missing((*prompt, *turns(response)), rendered):
            yield "dropped_content", f"{missing.role}: {missing.content[:200]}"
            break
    if row.options.tools:
        without = ChatOptions(template_kwargs=row.options.template_kwargs)
        if render_chat(tokenizer, prompt, without, add_generation_prompt=True) == chat.prompt:
            yield "dropped_tools", ""


def _first_missing(messages: Sequence[Message], rendered: str) -> Message | None:
    """A message whose text is not in the rendered one, each place of which can stand for one message."""
    for message in sorted(messages, key=lambda message: -len(message.content)):
        before, said, after = rendered.partition(message.content.strip() or "\0")
        if (message.content.strip() and not said) or any(call.name not in rendered for call in message.tool_calls):
            return message
        rendered = f"{before}\0{after}" if said else rendered
    return None


@lru_cache(maxsize=4)
def _specials(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Special tokens by their id, those with a role first."""
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return named | added


def _without_space(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> Sequence[int]:
    """Ids up to the last one that is more than white space: templates put a line break behind the end token."""
    end = len(ids)
    while end and end > len(ids) - 3 and not str(tokenizer.decode([ids[end - 1]])).strip():
        end -= 1
    return ids[:end]


def _some(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    spelled = _spelled(tokenizer, ids[:_SHOWN_TOKENS])
    return " ".join([*spelled, "..."] if len(ids) > _SHOWN_TOKENS else spelled) or "(ends)"


def _spelled(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    return [repr(tokenizer.decode([number])) for number in ids]
