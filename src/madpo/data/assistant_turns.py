"""Where the assistant's turns of a rendered conversation are: what it says, with the end of its turn.

Found by rendering, so that any chat template will do. What the template makes of the turns before one, with its
generation prompt, ends where the turn begins; what it makes of them with the turn ends where it ends. Templates that
render a turn otherwise once others follow (thinking that is left out, an EOS behind the last turn alone) are asked with
another text in the turn's place.
"""

from collections.abc import Sequence
from typing import Protocol

from madpo.data.loss_mask import LossMask, mask_of
from madpo.data.tokenize import shared_length
from madpo.errors import InvalidPairError
from madpo.types import Message

_PROBE = "Zq7Xk"
"""Stands for what is said. Plain letters, which no template escapes or trims, and in no word."""


class Render(Protocol):
    """A chat template with the arguments of a row."""

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of messages. Raises InvalidPairError where the template refuses them."""
        ...


def assistant_spans(render: Render, messages: Sequence[Message], first: int, rendered: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of the assistant's turns of a conversation.

    Args:
        render: What the template makes of messages.
        messages: The whole conversation.
        first: The first turn that is looked for.
        rendered: What the template makes of it.

    Raises:
        InvalidPairError: A turn cannot be found.
    """
    places = [place for place in range(first, len(messages)) if messages[place].role == "assistant"]
    return [_span(render, messages, place, rendered) for place in places]


def turn_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> LossMask:
    """The mask of tokens that lie within spans.

    Args:
        offsets: Start and end of each token, in characters.
        spans: In their order.
    """
    return mask_of(any(start <= begin and stop <= end for start, end in spans) for begin, stop in offsets)


def _span(render: Render, messages: Sequence[Message], place: int, rendered: str) -> tuple[int, int]:
    before = _attempt(render, messages[:place], add_generation_prompt=True)
    after = _attempt(render, messages[: place + 1], add_generation_prompt=False)
    start = len(before) if before and rendered.startswith(before) else None
    end = len(after) if after and rendered.startswith(after) else None
    if start is None or end is None:
        probed = _probe(render, messages, place, rendered)
        if probed is None and start is not None:
            probed = start, shared_length(after, rendered)
        if probed is None:
            raise _lost(place)
        start, end = (probed[0] if start is None else start), (probed[1] if end is None else end)
    if end <= start:
        raise _lost(place)
    return start, end


def _probe(render: Render, messages: Sequence[Message], place: int, rendered: str) -> tuple[int, int] | None:
    """The span, by what stays of the rendered text when the turn says something else; None where it does not show."""
    said = Message("assistant", _PROBE, messages[place].tool_calls)
    other = _attempt(render, [*messages[:place], said, *messages[place + 1 :]], add_generation_prompt=False)
    alone = _attempt(render, [*messages[:place], said], add_generation_prompt=False)
    if other.count(_PROBE) != 1 or alone.count(_PROBE) != 1:
        return None
    before, behind = other.split(_PROBE)
    start = shared_length(before, rendered)
    content_end = len(rendered) - shared_length(behind[::-1], rendered[start:][::-1])
    # Behind a last turn may stand more than behind others; what both have is the end of a turn.
    return start, content_end + shared_length(alone.split(_PROBE)[1], rendered[content_end:])


def _attempt(render: Render, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """What the template makes of a part of a conversation; nothing where it takes the whole alone."""
    try:
        return render(messages, add_generation_prompt=add_generation_prompt)
    except InvalidPairError:
        return ""


def _lost(place: int) -> InvalidPairError:
    return InvalidPairError(
        f"the chat template does not show where turn {place + 1} of the conversation, an assistant's, begins or ends, "
        "so its tokens cannot be told from those of others (make each answer a row of its own)"
    )
