"""What a model is to say, for supervised training: whole conversations, instructions with their outputs, plain text.

A conversation is learned from its first answer on: the turns before it are the prompt, and of those behind it the
assistant's count (`madpo.data.loss_mask`). Text is learned whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from madpo.data.forms.form import Answered, Form
from madpo.data.forms.llama_factory import read_history, read_instruction, read_turn
from madpo.data.forms.questions import as_turns
from madpo.data.messages import read_messages, read_text
from madpo.data.raw_row import RawRow
from madpo.types import Message


def _parted(turns: Sequence[Message], field: str, row: RawRow) -> Answered:
    """The turns before the first answer, and those from it on."""
    first = next((place for place, turn in enumerate(turns) if turn.role == "assistant"), None)
    if first is None:
        row.refuse(field, "has no turn of an assistant: there is nothing to learn")
    if first == 0:
        row.refuse(f"{field}[0]", "is an assistant's turn: there is nothing that it answers")
    return Answered(tuple(turns[:first]), tuple(turns[first:]))


def _read_messages(row: RawRow) -> Answered:
    answered = _parted(read_messages(row["messages"], "messages", row), "messages", row)
    if "prompt" in row and not any(
        turn.content == row["prompt"] for turn in answered.prompt if isinstance(turn, Message)
    ):
        row.refuse("prompt", "is not what a user says in messages before the first answer: leave it unread")
    return answered


def _read_conversations(row: RawRow) -> Answered:
    turns: Any = row["conversations"]
    if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "role" in turns[0]:
        return _parted(read_messages(turns, "conversations", row), "conversations", row)
    if not isinstance(turns, list) or not turns:
        row.refuse("conversations", "must be a list of turns, at least one")
    read = [read_turn(turn, f"conversations[{index}]", row) for index, turn in enumerate(turns)]
    return _parted(read, "conversations", row)


def _read_instruction(row: RawRow) -> Answered:
    output = as_turns(row["output"], "assistant", "output", row)
    return _parted((*read_history(row), read_instruction(row), *output), "output", row)


MESSAGES = Form(
    name="messages",
    reads={"prompt": "messages before the first answer", "completion": "messages from it on"},
    requires=frozenset({"messages"}),
    allows=frozenset({"prompt"}),
    read=_read_messages,
)
CONVERSATIONS = Form(
    name="conversations",
    reads={"prompt": "conversations before the first answer", "completion": "conversations from it on"},
    requires=frozenset({"conversations"}),
    read=_read_conversations,
)
INSTRUCTION = Form(
    name="instruction",
    reads={"prompt": "history, instruction and input", "completion": "output"},
    requires=frozenset({"instruction", "output"}),
    allows=frozenset({"input", "text"}),
    read=_read_instruction,
    gives_way=True,
)
TEXT = Form(
    name="text",
    reads={"completion": "text"},
    requires=frozenset({"text"}),
    read=lambda row: Answered("", read_text(row["text"], "text", row)),
    gives_way=True,
    text_is_turn=False,
)
