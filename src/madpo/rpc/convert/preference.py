"""Contents, pairs and responses: preference.proto."""

import json

from madpo import types
from madpo.errors import InvalidArgumentError
from madpo.v1 import preference_pb2 as preference


def content_to_proto(content: types.Content) -> preference.Content:
    """Text or messages."""
    message = preference.Content()
    _fill_content(message, content)
    return message


def _fill_content(message: preference.Content, content: types.Content) -> None:
    if isinstance(content, str):
        message.text = content
    else:
        message.conversation.messages.extend(map(_message_to_proto, content))


def content_from_proto(content: preference.Content, *, field: str) -> types.Content:
    """Raises InvalidArgumentError when neither text nor messages are given."""
    kind = content.WhichOneof("kind")
    if kind == "text":
        return content.text
    if kind == "conversation" and content.conversation.messages:
        return tuple(
            _message_from_proto(turn, field=f"{field}[{index}]")
            for index, turn in enumerate(content.conversation.messages)
        )
    raise InvalidArgumentError.in_field(field, "give text, or a conversation with at least one message")


def _message_to_proto(message: types.Message) -> preference.Message:
    calls = [
        preference.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments) for call in message.tool_calls
    ]
    texts = {name: getattr(message, name) for name in types.MESSAGE_TEXTS}
    return preference.Message(role=message.role, content=message.content, tool_calls=calls, **texts)


def _message_from_proto(message: preference.Message, *, field: str) -> types.Message:
    calls = tuple(
        types.ToolCall(
            call.name,
            _checked_json(call.arguments_json, dict, field=f"{field}.tool_calls[{index}].arguments_json"),
            call.id if call.HasField("id") else None,
        )
        for index, call in enumerate(message.tool_calls)
    )
    texts = {name: getattr(message, name) for name in types.MESSAGE_TEXTS if message.HasField(name)}
    return types.Message(message.role, message.content, calls, **texts)


def options_to_proto(options: types.ChatOptions) -> preference.ChatOptions | None:
    """None where there are none."""
    if options == types.NO_OPTIONS:
        return None
    return preference.ChatOptions(tools_json=options.tools, template_kwargs_json=options.template_kwargs)


def options_from_proto(options: preference.ChatOptions, *, field: str) -> types.ChatOptions:
    """An unset message is none. Raises InvalidArgumentError naming the part that is not JSON of its sort."""
    tools = template_kwargs = None
    if options.HasField("tools_json"):
        tools = _checked_json(options.tools_json, list, field=f"{field}.tools_json")
    if options.HasField("template_kwargs_json"):
        template_kwargs = _checked_json(options.template_kwargs_json, dict, field=f"{field}.template_kwargs_json")
    return types.ChatOptions(tools, template_kwargs)


def _checked_json(text: str, sort: type, *, field: str) -> str:
    try:
        if isinstance(json.loads(text), sort):
            return text
    except (ValueError, RecursionError):
        pass
    raise InvalidArgumentError.in_field(field, f"must be JSON text of {'a list' if sort is list else 'an object'}")


def checked_id(given: str, expected: str, *, field: str) -> str:
    """The id of a content; one that is given must be it. Raises InvalidArgumentError."""
    if given and given != expected:
        description = f"is {given[:80]!r}, the digest of the content is {expected} (leave it empty if unsure)"
        raise InvalidArgumentError.in_field(field, description)
    return expected


def pair_to_proto(pair: types.PreferencePair) -> preference.PreferencePair:
    """A pair with its id."""
    message = preference.PreferencePair(pair_id=pair.pair_id, options=options_to_proto(pair.options))
    # In place: messages that are made apart are copied into the one that holds them.
    _fill_content(message.prompt, pair.prompt)
    _fill_content(message.chosen, pair.chosen)
    _fill_content(message.rejected, pair.rejected)
    return message


def pair_from_proto(pair: preference.PreferencePair, *, field: str) -> types.PreferencePair:
    """Raises InvalidArgumentError naming the missing part."""
    return types.PreferencePair(
        prompt=content_from_proto(pair.prompt, field=f"{field}.prompt"),
        chosen=content_from_proto(pair.chosen, field=f"{field}.chosen"),
        rejected=content_from_proto(pair.rejected, field=f"{field}.rejected"),
        options=options_from_proto(pair.options, field=f"{field}.options"),
    )


def response_to_proto(
    prompt: types.Content, response: types.Content, options: types.ChatOptions = types.NO_OPTIONS
) -> preference.Response:
    """A response with its id."""
    return preference.Response(
        response_id=types.content_digest(prompt, response, options=options),
        prompt=content_to_proto(prompt),
        response=content_to_proto(response),
        options=options_to_proto(options),
    )


def response_from_proto(
    response: preference.Response, *, field: str
) -> tuple[types.Content, types.Content, types.ChatOptions]:
    """Prompt, response and options. Raises InvalidArgumentError naming the missing part."""
    return (
        content_from_proto(response.prompt, field=f"{field}.prompt"),
        content_from_proto(response.response, field=f"{field}.response"),
        options_from_proto(response.options, field=f"{field}.options"),
    )
