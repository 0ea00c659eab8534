"""What people and models say: texts and chat messages, with their JSON form and digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that an assistant's turn calls."""

    name: str
    arguments: str = "{}"
    """JSON text of an object, its keys in the order given: the model reads them in that order."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: str = ""
    """Empty where an assistant's turn only calls tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool's turn: the call that it answers."""
    name: str | None = None
    thinking: str | None = None
    """What an assistant thought before it answered; templates read it under this name or as `reasoning_content`."""
    reasoning_content: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the turn neither says nor calls anything."""
        return not (self.content.strip() or self.tool_calls)


MESSAGE_TEXTS = ("tool_call_id", "name", "thinking", "reasoning_content")
"""Optional texts of a message, in the order of its JSON form."""


Content = str | tuple[Message, ...]
"""Plain text, or chat messages to be rendered with the template of the model that reads them."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a chat template is given beside the messages, as JSON text: it can be compared and keeps its order."""

    tools: str | None = None
    """A list of function schemas."""
    template_kwargs: str | None = None
    """An object, such as `{"enable_thinking":false}`."""

    def template_inputs(self) -> dict[str, Any]:
        """Keyword arguments for `apply_chat_template`."""
        inputs = json.loads(self.template_kwargs) if self.template_kwargs else {}
        return inputs | ({"tools": json.loads(self.tools)} if self.tools else {})


NO_OPTIONS = ChatOptions()


def message_to_json(message: Message) -> dict[str, Any]:
    """The JSON form of a message, which is also what chat templates read; fields it does not have are left out."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    value |= {name: text for name in MESSAGE_TEXTS if (text := getattr(message, name)) is not None}
    if message.tool_calls:
        value["tool_calls"] = [
            ({} if call.id is None else {"id": call.id})
            | {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    return value


def message_from_json(value: Mapping[str, Any]) -> Message:
    """Inverse of `message_to_json`; the value was checked before."""
    calls = tuple(
        ToolCall(call["function"]["name"], json_text(call["function"]["arguments"]), call.get("id"))
        for call in value.get("tool_calls", ())
    )
    return Message(value["role"], value["content"], calls, **{name: value.get(name) for name in MESSAGE_TEXTS})


def content_to_json(content: Content) -> Any:
    """The JSON form of a content: a string, or a list of messages."""
    return content if isinstance(content, str) else [message_to_json(message) for message in content]


def content_from_json(value: Any) -> Content:
    """Inverse of `content_to_json`; the value was checked before."""
    return value if isinstance(value, str) else tuple(map(message_from_json, value))


_COMPACT = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
"""`json.dumps` would make one anew for each of a dataset's digests."""


def json_text(value: Any) -> str:
    """Compact JSON of ASCII characters; keys stay in their order."""
    return _COMPACT.encode(value)


def content_digest(*contents: Content, options: ChatOptions = NO_OPTIONS) -> str:
    """32 hex digits of SHA-256 over the JSON of the contents, and of the options where there are any."""
    values = [content_to_json(content) for content in contents]
    if options != NO_OPTIONS:
        # An object, so that it can be taken for no content.
        values.append({"tools": options.tools, "template_kwargs": options.template_kwargs})
    return hashlib.sha256(json_text(values).encode()).hexdigest()[:32]
