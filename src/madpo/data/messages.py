"""Texts, chat messages and tools of a row, checked. Nothing is repaired, but null means absent everywhere.

Arrow gives every object of a list all the keys that any of them has, holding null: within messages, tools, arguments
and template arguments an object's key that holds null is as if it were not there. The keys that are left stay in their
order, for the model reads them in that order.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from madpo.data.files.json_text import parse_json
from madpo.data.files.limits import DEFAULT_LIMITS
from madpo.data.raw_row import RawRow
from madpo.types import MESSAGE_TEXTS, NO_OPTIONS, ChatOptions, Content, Message, ToolCall, json_text

ROLES = ("system", "developer", "user", "assistant", "tool")

_SPELLED_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
"""Messages as JSON, or as Python prints them: what a table that knows only text makes of a list."""

_MESSAGE_KEYS = {"role", "content", "tool_calls", *MESSAGE_TEXTS}
_RESERVED_KWARGS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
}
"""What is the system's to say when it renders, or has a column of its own."""


def read_content(value: Any, field: str, row: RawRow) -> Content:
    """Text, or a list of messages; what spells such a list is neither."""
    if isinstance(value, str):
        if _SPELLED_MESSAGES.match(value):
            row.refuse(field, "spells messages, but is text: write them as a list")
        return read_text(value, field, row)
    if not isinstance(value, list):
        row.refuse(field, f"must be text or a list of messages, got {type(value).__name__}")
    return read_messages(value, field, row)


def read_messages(value: Any, field: str, row: RawRow) -> tuple[Message, ...]:
    """A list of messages, at least one."""
    if not isinstance(value, list):
        row.refuse(field, f"must be a list of messages, got {type(value).__name__}")
    if not value:
        row.refuse(field, "has no messages")
    return tuple(read_message(turn, f"{field}[{index}]", row) for index, turn in enumerate(value))


def read_message(value: Any, field: str, row: RawRow) -> Message:
    """One message."""
    if not isinstance(value, Mapping):
        row.refuse(field, f"must be an object with role and content, got {type(value).__name__}")
    turn = {key: part for key, part in value.items() if part is not None}
    unread = sorted(str(key) for key in turn if key not in _MESSAGE_KEYS)
    if unread:
        # Leaving out what a turn also says would train on another conversation than the one given.
        row.refuse(field, f"has a field a message cannot carry here: {unread[0]!r:.60}")
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        row.refuse(f"{field}.role", f"must be one of {', '.join(ROLES)}, got {role!r:.60}")
    calls = _read_tool_calls(turn.get("tool_calls", []), f"{field}.tool_calls", row)
    if calls and role != "assistant":
        row.refuse(f"{field}.tool_calls", f"belong to an assistant's turn, not to one of {role}")
    texts = {name: read_text(turn[name], f"{field}.{name}", row) for name in MESSAGE_TEXTS if name in turn}
    if calls and "content" not in turn:
        return Message(role, "", calls, **texts)
    return Message(role, _read_turn_content(turn.get("content"), f"{field}.content", row), calls, **texts)


def read_text(value: Any, field: str, row: RawRow) -> str:
    """Text of whole Unicode characters, without NUL."""
    if not isinstance(value, str):
        row.refuse(field, f"must be text, got {type(value).__name__}")
    if "\0" in value:
        row.refuse(field, f"has a NUL character at position {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        row.refuse(field, f"has half a surrogate pair at position {error.start}: not Unicode text")
    return value


def read_options(tools: Any, template_kwargs: Any, row: RawRow, *, tools_field: str = "tools") -> ChatOptions:
    """What the chat template is given beside the messages; None or nothing in it is none.

    Args:
        tools: A list of function schemas, or its JSON text.
        template_kwargs: An object, or its JSON text.
        row: The row, for errors.
        tools_field: Where the tools were found.
    """
    schemas = _read_tools(tools, tools_field, row) if tools is not None else []
    kwargs = _read_json(template_kwargs, "chat_template_kwargs", row) if template_kwargs is not None else {}
    if not isinstance(kwargs, dict):
        row.refuse("chat_template_kwargs", f"must be an object or its JSON text, got {type(kwargs).__name__}")
    if reserved := sorted(_RESERVED_KWARGS & kwargs.keys()):
        row.refuse(f"chat_template_kwargs.{reserved[0]}", "is not for a row to say")
    if not schemas and not kwargs:
        return NO_OPTIONS
    return ChatOptions(json_text(schemas) if schemas else None, json_text(kwargs) if kwargs else None)


def read_called(text: str, field: str, row: RawRow) -> tuple[ToolCall, ...]:
    """The calls that a text spells: one function with its arguments, or a list of them."""
    value = _read_json(text, field, row)
    return _read_tool_calls(value if isinstance(value, list) else [value], field, row)


def _read_turn_content(value: Any, field: str, row: RawRow) -> str:
    """Text, or a list of text blocks, which chat templates join without anything between."""
    if not isinstance(value, list):
        return read_text(value, field, row)
    if not value:
        row.refuse(field, "has no blocks")
    return "".join(_read_block(block, f"{field}[{index}]", row) for index, block in enumerate(value))


def _read_block(value: Any, field: str, row: RawRow) -> str:
    if not isinstance(value, Mapping):
        row.refuse(field, f"must be a text block, got {type(value).__name__}")
    block = {key: part for key, part in value.items() if part is not None}
    if block.get("type") != "text":
        row.refuse(f"{field}.type", f"must be 'text' (models here read text alone), got {block.get('type')!r:.60}")
    if unread := sorted(str(key) for key in block if key not in ("type", "text")):
        row.refuse(field, f"has a field a text block cannot carry here: {unread[0]!r:.60}")
    return read_text(block.get("text"), f"{field}.text", row)


def _read_tool_calls(value: Any, field: str, row: RawRow) -> tuple[ToolCall, ...]:
    if not isinstance(value, list):
        row.refuse(field, f"must be a list, got {type(value).__name__}")
    return tuple(_read_tool_call(call, f"{field}[{index}]", row) for index, call in enumerate(value))


def _read_tool_call(value: Any, field: str, row: RawRow) -> ToolCall:
    """`{"id", "type": "function", "function": {"name", "arguments"}}`, or the function alone."""
    if not isinstance(value, Mapping):
        row.refuse(field, f"must be an object with a function, got {type(value).__name__}")
    call = {key: part for key, part in value.items() if part is not None}
    if call.get("type", "function") != "function":
        row.refuse(f"{field}.type", f"must be 'function', got {call['type']!r:.60}")
    function, function_field = call, field
    if "function" in call:
        function_field = f"{field}.function"
        if not isinstance(call["function"], Mapping):
            row.refuse(function_field, f"must be an object with a name, got {type(call['function']).__name__}")
        function = {key: part for key, part in call["function"].items() if part is not None}
    allowed = {"name", "arguments"} if function is not call else {"id", "type", "name", "arguments"}
    unread = sorted(map(str, function.keys() - allowed)) or sorted(
        map(str, call.keys() - {"id", "type", "function", "name", "arguments"})
    )
    if unread:
        row.refuse(function_field, f"has a field a tool call cannot carry here: {unread[0]!r:.60}")
    name = read_text(function.get("name"), f"{function_field}.name", row)
    if not name.strip():
        row.refuse(f"{function_field}.name", "is empty")
    arguments = _read_json(function.get("arguments") or {}, f"{function_field}.arguments", row)
    if not isinstance(arguments, dict):
        row.refuse(f"{function_field}.arguments", f"must be an object or its JSON text, got {type(arguments).__name__}")
    call_id = read_text(call["id"], f"{field}.id", row) if "id" in call else None
    return ToolCall(name, json_text(arguments), call_id)


def _read_tools(value: Any, field: str, row: RawRow) -> list[Any]:
    schemas = _read_json(value, field, row)
    if not isinstance(schemas, list):
        row.refuse(field, f"must be a list of function schemas or its JSON text, got {type(schemas).__name__}")
    for index, schema in enumerate(schemas):
        function = schema.get("function", schema) if isinstance(schema, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"].strip()):
            row.refuse(f"{field}[{index}]", "must be the schema of a function, with a name")
    return schemas


def _read_json(value: Any, field: str, row: RawRow) -> Any:
    """A value, or the value that a text spells; its objects without keys that hold null."""
    if isinstance(value, str):
        text = read_text(value, field, row).encode()
        value = parse_json(text, row.number, DEFAULT_LIMITS, field=row.name(field)) if value.strip() else None
    return _clean(value, field, row, DEFAULT_LIMITS.max_depth)


def _clean(value: Any, field: str, row: RawRow, depth: int) -> Any:
    """The value if JSON can say it, without null in objects."""
    if depth < 0:
        row.refuse(field, f"is nested deeper than {DEFAULT_LIMITS.max_depth}")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return read_text(value, field, row)
    if isinstance(value, float):
        if not math.isfinite(value):
            row.refuse(field, f"holds {value}, which is not JSON")
        return value
    if isinstance(value, list):
        return [_clean(item, f"{field}[{index}]", row, depth - 1) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        row.refuse(field, f"must be JSON, got {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            row.refuse(field, f"has a key that is not text: {key!r:.60}")
        read_text(key, field, row)
    present = {key: part for key, part in value.items() if part is not None}
    return {key: _clean(part, f"{field}.{key:.60}", row, depth - 1) for key, part in present.items()}
