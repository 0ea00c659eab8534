"""The forms of LLaMA-Factory: ShareGPT conversations, the same with OpenAI's tags, and Alpaca."""

from collections.abc import Mapping
from typing import Any

from madpo.data.forms.form import Form, Pair
from madpo.data.forms.questions import as_turns
from madpo.data.messages import read_called, read_message, read_messages, read_text
from madpo.data.raw_row import RawRow
from madpo.types import Message

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_CALL = "function_call"


def read_turn(value: Any, field: str, row: RawRow) -> Message:
    """A turn of ShareGPT: who speaks, and what is said or called."""
    if not isinstance(value, Mapping):
        row.refuse(field, f"must be an object with from and value, got {type(value).__name__}")
    unread = sorted(str(key) for key, part in value.items() if part is not None and key not in ("from", "value"))
    if unread:
        row.refuse(field, f"has a field a turn cannot carry here: {unread[0]!r:.60}")
    speaker = value.get("from")
    said = read_text(value.get("value"), f"{field}.value", row)
    if speaker == _CALL:
        return Message("assistant", "", read_called(said, f"{field}.value", row))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        row.refuse(f"{field}.from", f"must be one of {', '.join((*_ROLES, _CALL))}, got {speaker!r:.60}")
    return Message(_ROLES[speaker], said)


def _read_sharegpt(row: RawRow) -> Pair:
    turns = row["conversations"]
    if not isinstance(turns, list):
        row.refuse("conversations", f"must be a list of turns, got {type(turns).__name__}")
    if not turns:
        row.refuse("conversations", "has no turns")
    prompt = tuple(read_turn(turn, f"conversations[{index}]", row) for index, turn in enumerate(turns))
    return Pair(prompt, *((read_turn(row[side], side, row),) for side in ("chosen", "rejected")))


def _read_tagged(row: RawRow) -> Pair:
    prompt = read_messages(row["messages"], "messages", row)
    return Pair(prompt, *((read_message(row[side], side, row),) for side in ("chosen", "rejected")))


def read_instruction(row: RawRow) -> Message:
    """What is asked in a row of Alpaca."""
    instruction = read_text(row["instruction"], "instruction", row)
    detail = read_text(row.values.get("input", ""), "input", row)
    return Message("user", f"{instruction}\n{detail}" if detail.strip() else instruction)


def _read_alpaca(row: RawRow) -> Pair:
    answers = (as_turns(row[side], "assistant", side, row) for side in ("chosen", "rejected"))
    return Pair((*read_history(row), read_instruction(row)), *answers)


def read_history(row: RawRow) -> list[Message]:
    """Earlier questions with their answers, of a row of Alpaca."""
    turns: list[Message] = []
    history = row.values.get("history", [])
    if not isinstance(history, list):
        row.refuse("history", f"must be a list, got {type(history).__name__}")
    for index, exchange in enumerate(history):
        field = f"history[{index}]"
        if not (isinstance(exchange, list) and len(exchange) == 2):
            row.refuse(field, "must be what was asked and what was answered")
        for place, role in enumerate(("user", "assistant")):
            turns.append(Message(role, read_text(exchange[place], f"{field}[{place}]", row)))
    return turns


def _holds_objects(row: RawRow) -> bool:
    return all(isinstance(row[side], Mapping) for side in ("chosen", "rejected"))


SHAREGPT = Form(
    name="sharegpt",
    reads={"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"},
    requires=frozenset({"conversations", "chosen", "rejected"}),
    read=_read_sharegpt,
)
SHAREGPT_MESSAGES = Form(
    name="sharegpt-messages",
    reads={"prompt": "messages", "chosen": "chosen", "rejected": "rejected"},
    requires=frozenset({"messages", "chosen", "rejected"}),
    accepts=_holds_objects,
    read=_read_tagged,
)
ALPACA = Form(
    name="alpaca",
    reads={"prompt": "history, instruction and input", "chosen": "chosen", "rejected": "rejected"},
    requires=frozenset({"instruction", "chosen", "rejected"}),
    allows=frozenset({"input"}),
    read=_read_alpaca,
)
