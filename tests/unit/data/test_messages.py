"""What a chat message, a tool and a row's template arguments may be, and what they become."""

import json
from typing import Any

import pytest

from madpo.data.records import parse_row
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.rpc import convert
from madpo.types import (
    ChatOptions,
    Message,
    PreferencePair,
    ToolCall,
    content_digest,
    content_from_json,
    content_to_json,
)
from madpo.v1 import preference_pb2

USER = {"role": "user", "content": "How warm is it in Rome?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "at": [1, 2.5]}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
ANSWERING = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "31"}
PAIR = {
    "prompt": [USER],
    "chosen": [CALLING, ANSWERING, {"role": "assistant", "content": "31 degrees."}],
    "rejected": [{"role": "assistant", "content": "Warm."}],
}


def parse(**changes: Any) -> PreferencePair:
    parsed = parse_row(PAIR | changes, 7)
    assert isinstance(parsed, PreferencePair)
    return parsed


def test_a_turn_may_call_tools_and_say_nothing() -> None:
    calling, answering, _ = parse().chosen

    assert calling == Message("assistant", "", (ToolCall("weather", '{"city":"Rome","at":[1,2.5]}', "c1"),))
    assert answering == Message("tool", "31", tool_call_id="c1", name="weather")


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "c1", "name": "weather", "arguments": {"city": "Rome", "at": [1, 2.5]}},
        {"id": "c1", "function": {"name": "weather", "arguments": ' {"city": "Rome", "at": [1, 2.5]}'}},
        CALL | {"function": CALL["function"] | {"arguments": {"city": "Rome", "unit": None, "at": [1, 2.5]}}},
        CALL | {"name": None, "arguments": None},
    ],
)
def test_a_call_is_the_same_in_every_spelling(call: dict[str, Any]) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "name": None, "audio": None}

    assert parse(chosen=[turn]).chosen == parse(chosen=[CALLING]).chosen


@pytest.mark.parametrize("empty", [None, "", {}, "{}"])
def test_a_call_without_arguments_has_none(empty: Any) -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": empty}}]}

    assert parse(chosen=[turn]).chosen == (Message("assistant", "", (ToolCall("now"),)),)


def test_text_blocks_are_one_text() -> None:
    blocks = [{"type": "text", "text": "How warm", "image": None}, {"type": "text", "text": " is it in Rome?"}]

    assert parse(prompt=[{"role": "user", "content": blocks}]) == parse()


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL | {"strict": None}]])
def test_tools_are_a_list_or_its_json_text(tools: Any) -> None:
    assert parse(tools=tools).options == ChatOptions(tools=json.dumps([TOOL], separators=(",", ":")))


@pytest.mark.parametrize("nothing", [{"tools": []}, {"tools": "[]"}, {"chat_template_kwargs": {}}, {"tools": None}])
def test_no_tools_and_no_arguments_are_nothing(nothing: dict[str, Any]) -> None:
    assert parse(**nothing) == parse()


def test_template_arguments_and_the_order_of_keys_are_kept() -> None:
    options = parse(chat_template_kwargs={"z": 1, "a": True, "n": None}).options

    assert options == ChatOptions(template_kwargs='{"z":1,"a":true}')
    assert options.template_inputs() == {"z": 1, "a": True}


def test_what_the_model_is_shown_is_part_of_the_pair_and_what_it_is_called_is_not() -> None:
    same = [parse(), parse(id="a", source="b", weight=2, margin=1)]
    others = [parse(tools=[TOOL]), parse(chat_template_kwargs={"a": 1}), parse(chosen=PAIR["chosen"][:1])]

    assert len({pair.pair_id for pair in same}) == 1
    assert len({pair.pair_id for pair in (*same, *others)}) == 4


def test_the_id_of_a_pair_without_any_of_this_stays_what_it_was() -> None:
    assert content_digest("The film was", "good", "bad") == "ff4077d851b892d494735e11165029ec"
    turns = tuple(Message(role, role) for role in ("system", "user", "assistant"))
    assert content_digest(turns[:2], turns[2:], (Message("assistant", ""),)) == "ca681d284a23b2dd67503c716336ea3e"


def test_a_row_keeps_its_names_and_rewards() -> None:
    pair = parse(id=12, source="films", weight=0.5, chosen_reward=2, rejected_reward=-1)

    assert (pair.id, pair.source, pair.weight) == ("12", "films", 0.5)
    assert (pair.chosen_reward, pair.rejected_reward, pair.reward_margin) == (2.0, -1.0, 3.0)


def test_messages_and_options_survive_the_wire_and_json() -> None:
    thinking = {"role": "assistant", "content": "", "thinking": "hm", "reasoning_content": "", "tool_calls": [CALL]}
    pair = parse(chosen=[thinking], tools=[TOOL], chat_template_kwargs={"a": [1]}, id="x", weight=0)

    assert convert.pair_from_proto(convert.pair_to_proto(pair), field="pair").pair_id == pair.pair_id
    assert convert.dataset_row_from_proto(convert.dataset_row_to_proto(pair)) == pair
    assert content_from_json(json.loads(json.dumps(content_to_json(pair.chosen)))) == pair.chosen


def test_broken_json_on_the_wire_is_refused_by_name() -> None:
    call = preference_pb2.ToolCall(name="f", arguments_json="[1]")
    turn = preference_pb2.Message(role="assistant", tool_calls=[call])
    content = preference_pb2.Content(conversation=preference_pb2.Conversation(messages=[turn]))

    with pytest.raises(InvalidArgumentError, match=r"chosen\[0\]\.tool_calls\[0\]\.arguments_json: .* an object"):
        convert.content_from_proto(content, field="chosen")
    for text in ("{}", "[" * 100_000, ""):
        with pytest.raises(InvalidArgumentError, match=r"options\.tools_json: must be JSON text of a list"):
            convert.options_from_proto(preference_pb2.ChatOptions(tools_json=text), field="options")


def turn(**fields: Any) -> dict[str, Any]:
    return {"chosen": [{"role": "assistant"} | fields]}


def call(**fields: Any) -> dict[str, Any]:
    return turn(tool_calls=[fields])


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        (turn(), "chosen[0].content", "must be text, got NoneType"),
        (turn(content="x", function_call={}), "chosen[0]", "'function_call'"),
        (turn(content="x", name=3), "chosen[0].name", "must be text, got int"),
        (turn(content=[]), "chosen[0].content", "has no blocks"),
        (turn(content=["x"]), "chosen[0].content[0]", "must be a text block, got str"),
        (turn(content=[{"type": "image"}]), "chosen[0].content[0].type", "models here read text alone), got 'image'"),
        (turn(content=[{"type": "text", "text": "a", "cache": 1}]), "chosen[0].content[0]", "'cache'"),
        (turn(content=[{"type": "text"}]), "chosen[0].content[0].text", "must be text, got NoneType"),
        (turn(tool_calls={"name": "f"}), "chosen[0].tool_calls", "must be a list, got dict"),
        (turn(tool_calls=["f"]), "chosen[0].tool_calls[0]", "must be an object with a function, got str"),
        (call(type="code", name="f"), "chosen[0].tool_calls[0].type", "must be 'function', got 'code'"),
        (call(name="f", index=0), "chosen[0].tool_calls[0]", "cannot carry here: 'index'"),
        (call(function="f"), "chosen[0].tool_calls[0].function", "must be an object with a name, got str"),
        (call(function={"name": "f", "x": 1}), "chosen[0].tool_calls[0].function", "cannot carry here: 'x'"),
        (call(function={}), "chosen[0].tool_calls[0].function.name", "must be text, got NoneType"),
        (call(name=" "), "chosen[0].tool_calls[0].name", "is empty"),
        (call(name="f", arguments="{"), "chosen[0].tool_calls[0].arguments", "is not JSON"),
        (call(name="f", arguments="[1]"), "chosen[0].tool_calls[0].arguments", "got list"),
        (call(name="f", arguments='{"a": NaN}'), "chosen[0].tool_calls[0].arguments", "holds NaN"),
        (call(name="f", arguments={"a": float("inf")}), "chosen[0].tool_calls[0].arguments.a", "holds inf"),
        (call(name="f", arguments={"a": b"x"}), "chosen[0].tool_calls[0].arguments.a", "must be JSON, got bytes"),
        (call(name="f", arguments={"a": {1: 2}}), "chosen[0].tool_calls[0].arguments.a", "a key that is not text: 1"),
        (call(name="f", arguments='{"a": 1, "a": 2}'), "chosen[0].tool_calls[0].arguments", "the key 'a' twice"),
        (call(name="f", arguments={"a": "\0"}), "chosen[0].tool_calls[0].arguments.a", "NUL"),
        (call(name="f", arguments='{"a": "\\ud800"}'), "chosen[0].tool_calls[0].arguments.a", "surrogate"),
        (
            {"prompt": [USER | {"tool_calls": [CALL]}]},
            "prompt[0].tool_calls",
            "an assistant's turn, not to one of user",
        ),
        ({"prompt": json.dumps([USER])}, "prompt", "spells messages, but is text: write them as a list"),
        ({"chosen": str([CALLING | {"content": "x"}])}, "chosen", "spells messages, but is text"),
        ({"tools": {"name": "f"}}, "tools", "must be a list of function schemas or its JSON text, got dict"),
        ({"tools": "f"}, "tools", "is not JSON: Expecting value at character 1"),
        ({"tools": "[" * 100_000}, "tools", "deeper than 32"),
        ({"tools": "[" * 50 + "]" * 50}, "tools", "deeper than 32"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1]", "must be the schema of a function"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "must be an object or its JSON text, got list"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize", "not for a row to say"),
        ({"weight": -1}, "weight", "must be at least 0"),
        ({"weight": "2"}, "weight", "must be a number, got str"),
        ({"id": 1.5}, "id", "must be text, got float"),
        ({"id": True}, "id", "must be text, got bool"),
        ({"source": [["x"]]}, "source[0]", "must be text, got list"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(changes: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidPairError) as caught:
        parse(**changes)

    (violation,) = caught.value.violations
    start, named = violation.field.split(".", 1)
    assert (start, named.startswith(field)) == ("row 7", True), violation.field
    assert reason in violation.description
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "completion": "b", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"prompt": "a", "weight": 1}, "weight"),
    ],
)
def test_what_would_have_no_effect_is_refused(row: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidPairError, match=rf"row 1\.{field}: is for"):
        parse_row(row, 1)
