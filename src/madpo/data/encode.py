"""Rows to token ids, many at a time: the texts of a chunk of rows go through the tokenizer in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from madpo.data.assistant_turns import assistant_spans, turn_mask
from madpo.data.limited import within_limits
from madpo.data.loss_mask import LossMask
from madpo.data.tokenize import Encoded, encode_texts, finish_prompt, finish_response, render_chat, split
from madpo.errors import InvalidPairError
from madpo.types import Completion, Content, DatasetRow, PreferencePair, ResponseList

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a prompt and of its responses, in the order of `row_responses`; nothing is cut."""

    row: int
    prompt_ids: list[int]
    responses: tuple[list[int], ...]
    masks: tuple[LossMask, ...] = ()
    """Which tokens of each response count; none where all of all do."""

    def mask(self, place: int) -> LossMask:
        """Of the response at a place."""
        return self.masks[place] if self.masks else ()

    def sequence(self, place: int) -> Encoded:
        """The prompt with the response at a place."""
        return Encoded(self.prompt_ids, self.responses[place], self.mask(place))

    def only(self, places: Sequence[int]) -> Self:
        """The row with some of its responses."""
        masks = tuple(self.masks[place] for place in places) if self.masks else ()
        return type(self)(self.row, self.prompt_ids, tuple(self.responses[place] for place in places), masks)


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """What the chat template made of a row: its prompt, and the prompt with each response. Empty for plain text."""

    prompt: str = ""
    sequences: tuple[str, ...] = ()
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Of each sequence, where the assistant's turns of its response are, in characters; none where the response is one
    turn."""


Outcome = EncodedRow | InvalidPairError
"""A row's ids, or why it has none."""


def row_responses(row: DatasetRow) -> tuple[Content, ...]:
    """The responses of a row: chosen, rejected and, where it is given, the gold one; or all of a list."""
    match row:
        case PreferencePair():
            return (row.chosen, row.rejected, *(() if row.gold is None else (row.gold,)))
        case ResponseList():
            return row.responses
        case Completion():
            return (row.completion,)
    return ()


@within_limits
def encode_rows(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[DatasetRow]) -> list[tuple[Outcome, RenderedRow]]:
    """Ids of rows, the same as `encode_prompt` and `encode_response` give, and the text of those with messages.

    Of a response of several turns the tokens of the assistant's count: what it says, and the end of its turn.

    Raises:
        InvalidArgumentError: Messages, but the tokenizer has no chat template.
    """
    rendered = [_render(tokenizer, row) for row in rows]
    plain = _Queue(tokenizer, special_tokens=False)
    marked = _Queue(tokenizer, special_tokens=True)
    for row, chat in zip(rows, rendered, strict=True):
        if isinstance(row.prompt, str):
            marked.add(row.prompt)
            for response in row_responses(row):
                plain.add(str(response))
        elif isinstance(chat, RenderedRow):
            for text in (chat.prompt, *chat.sequences):
                plain.add(text)
    plain.encode()
    marked.encode()
    return [
        (chat, RenderedRow())
        if isinstance(chat, InvalidPairError)
        else (_outcome(tokenizer, row, chat, plain, marked), chat)
        for row, chat in zip(rows, rendered, strict=True)
    ]


class _Queue:
    """Texts in, ids out, in the same order."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, special_tokens: bool) -> None:
        self._tokenizer, self._special_tokens = tokenizer, special_tokens
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        self._texts.append(text)

    def encode(self) -> None:
        self._ids = iter(encode_texts(self._tokenizer, self._texts, special_tokens=self._special_tokens))

    def take(self) -> list[int]:
        return next(self._ids)


def _render(tokenizer: "PreTrainedTokenizerBase", row: DatasetRow) -> RenderedRow | InvalidPairError:
    if isinstance(row.prompt, str):
        return RenderedRow()
    try:
        render = partial(render_chat, tokenizer, options=row.options)
        prompt = render(row.prompt, add_generation_prompt=True)
        wholes = [(*row.prompt, *response) for response in row_responses(row) if not isinstance(response, str)]
        sequences = [render(messages, add_generation_prompt=False) for messages in wholes]
        first = len(row.prompt)
        spans = [
            tuple(assistant_spans(render, messages, first, text)) if len(messages) > first + 1 else ()
            for messages, text in zip(wholes, sequences, strict=True)
        ]
        return RenderedRow(prompt, tuple(sequences), tuple(spans))
    except InvalidPairError as error:
        return _named(row, error)


def _outcome(
    tokenizer: "PreTrainedTokenizerBase", row: DatasetRow, chat: RenderedRow, plain: _Queue, marked: _Queue
) -> Outcome:
    count = len(row_responses(row))
    if isinstance(row.prompt, str):
        prompt_ids = finish_prompt(tokenizer, marked.take())
        return EncodedRow(
            row.row, prompt_ids, tuple(finish_response(tokenizer, plain.take(), prompt_ids) for _ in range(count))
        )
    prompt_ids, *sequences = (plain.take() for _ in range(1 + count))
    try:
        responses = tuple(split(tokenizer, prompt_ids, ids).response_ids for ids in sequences)
        masks = tuple(_mask(tokenizer, chat, place, behind=len(prompt_ids)) for place in range(count))
    except InvalidPairError as error:
        return _named(row, error)
    return EncodedRow(row.row, prompt_ids, responses, masks if any(masks) else ())


def _mask(tokenizer: "PreTrainedTokenizerBase", chat: RenderedRow, place: int, *, behind: int) -> LossMask:
    """The mask of a sequence's tokens behind its prompt's."""
    if not chat.spans[place]:
        return ()
    encoding = tokenizer.backend_tokenizer.encode(chat.sequences[place], add_special_tokens=False)
    mask = turn_mask(encoding.offsets[behind:], chat.spans[place])
    if mask[:1] == (0,) and len(mask) == 2:
        raise InvalidPairError("no token of the response is an assistant's")
    return mask


def _named(row: DatasetRow, error: InvalidPairError) -> InvalidPairError:
    name = f"row {row.row}"
    return InvalidPairError.in_field(name, str(error))
