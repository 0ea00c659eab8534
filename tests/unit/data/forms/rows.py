"""Rows as they are kept, made at random, and every form they can be written in."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from madpo.data.ranking import ListRule
from madpo.types import (
    NO_OPTIONS,
    ChatOptions,
    Completion,
    Content,
    DatasetRow,
    Message,
    PreferencePair,
    PromptOnly,
    ResponseList,
    ToolCall,
    content_to_json,
    json_text,
    message_to_json,
)

Raw = dict[str, Any]

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(_CHARACTERS, max_size=20) | st.sampled_from(
    ["", " ", "Human:", "\n\nAssistant", "<|im_end|>", "a\r\nb"]
)
SAYINGS = TEXTS.filter(str.strip)
"""What a response can be: not blank."""
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-5, 5).map(float)
JSON_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(TEXTS, JSON_VALUES, max_size=3).map(json_text)
CALLS = st.builds(ToolCall, SAYINGS, ARGUMENTS, st.none() | TEXTS)
SCHEMAS = st.builds(
    lambda name, rest: {"type": "function", "function": {"name": name} | rest},
    SAYINGS,
    st.dictionaries(st.sampled_from(["description", "parameters", "strict"]), JSON_VALUES, max_size=2),
)
OPTIONS = st.builds(
    ChatOptions,
    st.none() | st.lists(SCHEMAS, min_size=1, max_size=2).map(json_text),
    st.none() | st.dictionaries(st.sampled_from(["enable_thinking", "level"]), JSON_VALUES, min_size=1).map(json_text),
)

SYSTEM = st.builds(Message, st.sampled_from(["system", "developer"]), TEXTS)
USER = st.builds(Message, st.just("user"), TEXTS, name=st.none() | TEXTS)
ASSISTANT = st.builds(
    Message,
    st.just("assistant"),
    SAYINGS,
    st.just(()) | st.lists(CALLS, min_size=1, max_size=2).map(tuple),
    thinking=st.none() | TEXTS,
    reasoning_content=st.none() | TEXTS,
) | st.builds(Message, st.just("assistant"), st.just(""), st.lists(CALLS, min_size=1, max_size=2).map(tuple))
TOOL = st.builds(Message, st.just("tool"), TEXTS, tool_call_id=st.none() | TEXTS, name=st.none() | TEXTS)
TURNS = st.one_of(SYSTEM, USER, ASSISTANT, TOOL)
PROMPTS = st.tuples(st.lists(TURNS, max_size=2), USER).map(lambda parts: (*parts[0], parts[1]))
RESPONSES = st.tuples(ASSISTANT, st.lists(st.one_of(TOOL, ASSISTANT), max_size=2)).map(
    lambda parts: (parts[0], *parts[1])
)

PLAIN_USER = st.builds(Message, st.just("user"), TEXTS)
PLAIN_ASSISTANT = st.builds(Message, st.just("assistant"), SAYINGS)
ANSWERS = PLAIN_ASSISTANT.map(lambda turn: (turn,))
PLAIN_SYSTEM = st.builds(Message, st.just("system"), SAYINGS)


@st.composite
def pairs(
    draw: Any, prompts: SearchStrategy[Content], responses: SearchStrategy[Content], *, options: bool = True
) -> PreferencePair:
    """A pair with any of what a pair may have beside its texts."""
    chosen, rejected = draw(st.lists(responses, min_size=2, max_size=2, unique=True))
    rewards = draw(st.none() | st.tuples(NUMBERS, NUMBERS))
    margin = draw(st.none() | NUMBERS)
    if rewards is not None and margin is None:
        margin = rewards[0] - rewards[1]
    uncertainties = draw(st.just((None, None)) | st.tuples(*2 * [st.floats(0, 9)]))
    return PreferencePair(
        draw(prompts),
        chosen,
        rejected,
        reward_margin=margin,
        gold=draw(st.none() | responses),
        chosen_uncertainty=uncertainties[0],
        rejected_uncertainty=uncertainties[1],
        semantic_distance=draw(st.none() | st.floats(0, 2)),
        chosen_reward=None if rewards is None else rewards[0],
        rejected_reward=None if rewards is None else rewards[1],
        weight=draw(st.none() | st.floats(0, 9)),
        options=draw(OPTIONS) if options else NO_OPTIONS,
        id=draw(st.none() | TEXTS),
        source=draw(st.none() | TEXTS),
    )


@st.composite
def lists(draw: Any, prompts: Any, responses: Any, *, ranks: bool, options: bool = True, size: int = 4) -> ResponseList:
    """A list of which not all scores are the same."""
    contents = draw(st.lists(responses, min_size=2, max_size=size, unique=True))
    numbers = st.integers(-5, 0).map(float) if ranks else NUMBERS
    scores = draw(st.lists(numbers, min_size=len(contents), max_size=len(contents)).filter(lambda s: len(set(s)) > 1))
    return ResponseList(
        draw(prompts),
        tuple(contents),
        tuple(scores),
        weight=draw(st.none() | st.floats(0, 9)),
        options=draw(OPTIONS) if options else NO_OPTIONS,
        id=draw(st.none() | TEXTS),
        source=draw(st.none() | TEXTS),
    )


def extras(row: DatasetRow, *, without: tuple[str, ...] = ()) -> Raw:
    """The columns that any form writes in the same way."""
    names = ["gold", "chosen_uncertainty", "rejected_uncertainty", "semantic_distance", "weight", "id", "source"]
    names += ["chosen_reward", "rejected_reward"]
    columns = {name: getattr(row, name, None) for name in names}
    if columns["gold"] is not None:
        columns["gold"] = content_to_json(columns["gold"])
    columns["margin"] = getattr(row, "reward_margin", None)
    columns["tools"] = row.options.tools  # the JSON text
    columns["chat_template_kwargs"] = json.loads(row.options.template_kwargs) if row.options.template_kwargs else None
    return {name: value for name, value in columns.items() if value is not None and name not in without}


def contents(row: DatasetRow, **names: str) -> Raw:
    """Contents under the names that a form has for them."""
    return {given: content_to_json(getattr(row, ours)) for ours, given in names.items()}


@dataclass(frozen=True)
class Case:
    """A form, the rows that can be written in it, and how."""

    form: str
    rows: SearchStrategy[Any]
    write: Callable[[Any], Raw]
    lists: ListRule | None = None


def _explicit(row: Any) -> Raw:
    return contents(row, prompt="prompt", chosen="chosen", rejected="rejected") | extras(row)


@st.composite
def _parting_texts(draw: Any) -> PreferencePair:
    """A text pair whose prompt ends where its responses part: each begins with its own space and another character."""
    prompt = draw(SAYINGS.map(str.strip).filter(bool))
    first, second = draw(st.lists(st.sampled_from("abcXYZ.?!«中"), min_size=2, max_size=2, unique=True))
    pair = draw(pairs(st.just(prompt), SAYINGS, options=False))
    return replace(pair, chosen=f" {first}{draw(TEXTS)}", rejected=f" {second}{draw(TEXTS)}")


def _parting(pair: PreferencePair) -> bool:
    return pair.chosen[0] != pair.rejected[0]


def _implicit(row: Any) -> Raw:
    prompt = content_to_json(row.prompt)
    return {side: prompt + content_to_json(getattr(row, side)) for side in ("chosen", "rejected")} | extras(row)


def _is_full(row: PreferencePair) -> bool:
    turns = [turn for turn in row.prompt if isinstance(turn, Message)]
    return turns[0].role in ("system", "developer", "user")


def _full(row: Any) -> Raw:
    asked = next(turn.content for turn in row.prompt if turn.role == "user")
    return {"prompt": asked} | _implicit(row) | {"messages": content_to_json(row.prompt + row.chosen)}


def _full_messages(row: Any) -> Raw:
    return contents(row, prompt="prompt") | _implicit(row)


_SPOKEN = TEXTS.filter(lambda text: "\n\nHuman:" not in f"\n\n{text}:" and "\n\nAssistant" not in f"\n\n{text}")
_HUMAN = st.builds(Message, st.just("user"), _SPOKEN)
_REPLY = st.builds(Message, st.just("assistant"), _SPOKEN.filter(str.strip))
_EXCHANGES = st.lists(st.tuples(_HUMAN, _REPLY), max_size=2).map(
    lambda pairs: [turn for pair in pairs for turn in pair]
)
_TRANSCRIPTS = st.tuples(_EXCHANGES, _HUMAN).map(lambda parts: (*parts[0], parts[1]))
_REPLIES = _REPLY.map(lambda turn: (turn,))


def _transcript(turns: tuple[Message, ...]) -> str:
    speakers = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in turns)


def _hh(row: Any) -> Raw:
    return {side: _transcript(row.prompt + getattr(row, side)) for side in ("chosen", "rejected")} | extras(row)


def _nectar(row: ResponseList) -> Raw:
    answers = [
        {"answer": response[0].content, "model": "m", "rank": -score}
        for response, score in zip(row.responses, row.scores, strict=True)
    ]
    return {"prompt": _transcript(row.prompt) + "\n\nAssistant: ", "answers": answers} | extras(row)


def _scored(row: ResponseList) -> Raw:
    return {
        "prompt": content_to_json(row.prompt),
        "responses": [content_to_json(response) for response in row.responses],
        "scores": list(row.scores),
    } | extras(row)


def _nemo_rl(row: ResponseList) -> Raw:
    completions = [
        {"rank": -score, "completion": content_to_json(response)}
        for response, score in zip(row.responses, row.scores, strict=True)
    ]
    return {"context": content_to_json(row.prompt), "completions": completions} | extras(row)


def _nemo_rl_pair(row: PreferencePair) -> Raw:
    completions = [
        {"rank": rank, "completion": content_to_json(getattr(row, side))}
        for side, rank in (("rejected", 1), ("chosen", 0))
    ]
    return {"context": content_to_json(row.prompt), "completions": completions} | extras(row)


def _openai(row: PreferencePair) -> Raw:
    tools = {"tools": json.loads(row.options.tools)} if row.options.tools else {}
    return (
        {"input": contents(row, prompt="messages") | tools | {"parallel_tool_calls": True}}
        | contents(row, chosen="preferred_output", rejected="non_preferred_output")
        | extras(row, without=("tools",))
    )


_QUESTIONS = st.tuples(PLAIN_USER) | st.tuples(PLAIN_SYSTEM, PLAIN_USER)


def _question(question: str, chosen: str, rejected: str) -> Callable[[Any], Raw]:
    def write(row: Any) -> Raw:
        *system, asked = row.prompt
        columns = {question: asked.content, chosen: row.chosen[0].content, rejected: row.rejected[0].content}
        return columns | ({"system": system[0].content} if system else {}) | extras(row)

    return write


def _nemo_aligner(row: Any) -> Raw:
    return contents(row, prompt="prompt", chosen="chosen_response", rejected="rejected_response") | extras(row)


_ALPACA = st.tuples(
    st.none() | PLAIN_SYSTEM, st.lists(st.tuples(PLAIN_USER, PLAIN_ASSISTANT), max_size=2), PLAIN_USER
).map(
    lambda parts: (
        *([parts[0]] if parts[0] else []),
        *(turn for exchange in parts[1] for turn in exchange),
        parts[2],
    )
)


def _alpaca(row: Any) -> Raw:
    turns = list(row.prompt)
    columns: Raw = {"system": turns.pop(0).content} if turns[0].role == "system" else {}
    instruction, newline, detail = turns.pop().content.partition("\n")
    columns |= (
        {"instruction": instruction, "input": detail}
        if detail.strip()
        else {"instruction": instruction + newline + detail}
    )
    if turns:
        columns["history"] = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns), 2)]
    return columns | {side: getattr(row, side)[0].content for side in ("chosen", "rejected")} | extras(row)


_CALLING = st.builds(ToolCall, SAYINGS, ARGUMENTS).map(lambda call: Message("assistant", "", (call,)))
_SHARED = st.one_of(
    PLAIN_USER,
    PLAIN_ASSISTANT,
    st.builds(Message, st.just("system"), TEXTS),
    st.builds(Message, st.just("tool"), TEXTS),
    _CALLING,
)


def _sharegpt_turn(turn: Message) -> Raw:
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    if turn.tool_calls:
        (call,) = turn.tool_calls
        value = json.dumps({"name": call.name, "arguments": json.loads(call.arguments)})
        return {"from": "function_call", "value": value}
    return {"from": names[turn.role], "value": turn.content}


def _sharegpt(row: Any) -> Raw:
    turns = {"conversations": [_sharegpt_turn(turn) for turn in row.prompt]}
    return turns | {side: _sharegpt_turn(getattr(row, side)[0]) for side in ("chosen", "rejected")} | extras(row)


def _sharegpt_messages(row: Any) -> Raw:
    sides = {side: message_to_json(getattr(row, side)[0]) for side in ("chosen", "rejected")}
    return contents(row, prompt="messages") | sides | extras(row)


_CONVERSATIONS = st.builds(
    Completion,
    PROMPTS.filter(lambda turns: all(turn.role != "assistant" for turn in turns)),
    st.tuples(RESPONSES, st.just(()) | st.tuples(USER, ASSISTANT)).map(lambda parts: (*parts[0], *parts[1])),
    options=OPTIONS,
    id=st.none() | TEXTS,
    source=st.none() | TEXTS,
)


def _whole(row: Any) -> Any:
    return content_to_json(row.prompt + row.completion)


def _instruction(row: Any) -> Raw:
    instruction, _, detail = row.prompt[0].content.partition("\n")
    asked = {"instruction": instruction, "input": detail} if detail.strip() else {"instruction": row.prompt[0].content}
    return asked | {"output": row.completion[0].content, "text": "a rendering of all that"} | extras(row)


_NAMES = {"id": st.none() | TEXTS, "source": st.none() | TEXTS}
_ONE_TURN = ASSISTANT.map(lambda turn: (turn,))
_CHAT_LISTS = lists(PROMPTS, RESPONSES, ranks=True)

CASES = (
    Case("explicit-text", pairs(TEXTS, SAYINGS, options=False), _explicit),
    Case("explicit-chat", pairs(PROMPTS, RESPONSES), _explicit),
    Case("full-conversations", pairs(PROMPTS, RESPONSES).filter(_parting).filter(_is_full), _full),
    Case("full-conversations", pairs(PROMPTS, RESPONSES).filter(_is_full), _full_messages),
    Case("implicit-text", _parting_texts(), _implicit),
    Case("implicit-chat", pairs(PROMPTS, RESPONSES).filter(_parting), _implicit),
    Case("hh-rlhf", pairs(_TRANSCRIPTS, _REPLIES), _hh),
    Case("nectar", lists(_TRANSCRIPTS, _REPLIES, ranks=True), _nectar, "keep"),
    Case("scored-list", lists(TEXTS, SAYINGS, ranks=False, options=False), _scored),
    Case("scored-list", lists(PROMPTS, RESPONSES, ranks=False), _scored, "keep"),
    Case("nemo-rl", _CHAT_LISTS, _nemo_rl, "keep"),
    Case("nemo-rl", pairs(PROMPTS, RESPONSES), _nemo_rl_pair),
    Case("nemo-rl", pairs(TEXTS, SAYINGS, options=False), _nemo_rl_pair),
    Case("openai", pairs(PROMPTS, RESPONSES), _openai),
    Case("nemo-aligner", pairs(TEXTS, SAYINGS, options=False), _nemo_aligner),
    Case("nemo-aligner", pairs(PROMPTS, RESPONSES), _nemo_aligner),
    Case("intel", pairs(_QUESTIONS, ANSWERS), _question("question", "chosen", "rejected")),
    Case("icr", pairs(_QUESTIONS, ANSWERS), _question("input", "chosen", "rejected")),
    Case("argilla", pairs(_QUESTIONS, ANSWERS), _question("instruction", "chosen_response", "rejected_response")),
    Case("argilla-question", pairs(_QUESTIONS, ANSWERS), _question("question", "chosen_response", "rejected_response")),
    Case("alpaca", pairs(_ALPACA, ANSWERS), _alpaca),
    Case(
        "sharegpt",
        pairs(
            st.lists(_SHARED, min_size=1, max_size=3).map(tuple),
            st.one_of(PLAIN_ASSISTANT, _CALLING).map(lambda turn: (turn,)),
        ),
        _sharegpt,
    ),
    Case("sharegpt-messages", pairs(PROMPTS, _ONE_TURN), _sharegpt_messages),
    Case(
        "completion",
        st.builds(Completion, TEXTS, SAYINGS, **_NAMES)
        | st.builds(Completion, PROMPTS, RESPONSES, options=OPTIONS, **_NAMES),
        lambda row: contents(row, prompt="prompt", completion="completion") | extras(row),
    ),
    Case("messages", _CONVERSATIONS, lambda row: {"messages": _whole(row)} | extras(row)),
    Case("conversations", _CONVERSATIONS, lambda row: {"conversations": _whole(row)} | extras(row)),
    Case(
        "conversations",
        st.builds(
            Completion,
            st.tuples(PLAIN_USER),
            st.tuples(PLAIN_ASSISTANT) | st.tuples(PLAIN_ASSISTANT, PLAIN_USER, PLAIN_ASSISTANT),
            **_NAMES,
        ),
        lambda row: {"conversations": list(map(_sharegpt_turn, row.prompt + row.completion))} | extras(row),
    ),
    Case("instruction", st.builds(Completion, st.tuples(PLAIN_USER), ANSWERS, **_NAMES), _instruction),
    Case(
        "text",
        st.builds(Completion, st.just(""), SAYINGS, **_NAMES),
        lambda row: {"text": row.completion} | extras(row),
    ),
    Case(
        "prompt",
        st.builds(PromptOnly, TEXTS, **_NAMES) | st.builds(PromptOnly, PROMPTS, options=OPTIONS, **_NAMES),
        lambda row: contents(row, prompt="prompt") | extras(row),
    ),
)
