"""A system prompt in a column of its own: the first turn of what was asked."""

from dataclasses import replace
from typing import TypeVar

from madpo.data.forms.form import Answered, Asked, Form, Pair, Ranked, Reading
from madpo.data.messages import read_text
from madpo.data.raw_row import RawRow
from madpo.types import Content, Message

R = TypeVar("R", bound=Reading)


def with_system(reading: R, form: Form, row: RawRow) -> R:
    """The reading with the row's system prompt; texts then become turns of a user and an assistant.

    An empty system prompt is no turn, but rows of one file are to be rendered alike: texts become turns then too.

    Raises:
        InvalidPairError: The prompt begins with another system prompt, or is not what a user says.
    """
    if "system" not in row:
        return reading
    system = read_text(row["system"], "system", row)
    if isinstance(reading.prompt, str) and not form.text_is_turn:
        if not system.strip():
            return reading
        row.refuse("system", f"cannot stand before a prompt that the responses begin with ({form.name}): give a prompt")
    prompt = _turns(reading.prompt, "user")
    first = prompt[0]
    if system.strip():
        if first.role not in ("system", "developer"):
            prompt = (Message("system", system), *prompt)
        elif first.content != system:
            row.refuse("system", "is another system prompt than the one the messages begin with")
    match reading:
        case Pair():
            chosen, rejected = (_turns(response, "assistant") for response in (reading.chosen, reading.rejected))
            return replace(reading, prompt=prompt, chosen=chosen, rejected=rejected)
        case Ranked():
            responses = tuple(_turns(response, "assistant") for response in reading.responses)
            return replace(reading, prompt=prompt, responses=responses)
        case Answered():
            return replace(reading, prompt=prompt, completion=_turns(reading.completion, "assistant"))
        case Asked():
            return replace(reading, prompt=prompt)
    raise AssertionError(reading)


def _turns(content: Content, role: str) -> tuple[Message, ...]:
    return (Message(role, content),) if isinstance(content, str) else content
