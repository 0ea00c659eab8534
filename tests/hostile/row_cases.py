"""Rows that must be refused, as JSON lines: text, JSON, types, messages, numbers."""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

from tests.hostile.case import ASSISTANT, CHAT, GOOD, GOOD_LINE, USER, Case


def lines(*rows: bytes | dict[str, Any]) -> bytes:
    """JSON lines: a good one, then these."""
    return GOOD_LINE + b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def line_case(name: str, row: bytes | dict[str, Any], field: str, reason: str) -> Case:
    """A bad second line."""
    return Case(name, "rows.jsonl", lambda: lines(row), reason, f"row 2{field}")


# ---- text


def text_cases() -> Iterator[Case]:
    """Bytes that are no text, and text that is no Unicode."""
    sequences = {
        "lone byte": b"\xff",
        "lone continuation": b"\x80",
        "bad continuation": b"\xc3\x28",
        "cut two": b"\xc3",
        "cut three": b"\xe2\x82",
        "cut four": b"\xf0\x9f\x98",
        "overlong slash": b"\xc0\xaf",
        "overlong NUL": b"\xc0\x80",
        "surrogate": b"\xed\xa0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80",
    }
    for (name, data), column in product(sequences.items(), GOOD):
        row = json.dumps(GOOD | {column: "@"}).encode().replace(b"@", data)
        yield line_case(f"UTF-8: {name} in {column}", row, "", "is not UTF-8 at byte")
    halves = {"high": r"\ud83d", "low": r"\ude00", "turned round": r"\ude00\ud83d", "at the end": r"ok \ud800"}
    for (name, half), column in product(halves.items(), GOOD):
        row = json.dumps(GOOD | {column: "@"}).replace("@", half).encode()
        yield line_case(f"surrogates: {name} in {column}", row, f".{column}", "half a surrogate pair at position")
        chat = json.dumps(CHAT | {column: [CHAT[column][0] | {"content": "@"}]}).replace("@", half).encode()
        yield line_case(f"surrogates: {name} in a message of {column}", chat, f".{column}[0].content", "half a surr")
    for column in GOOD:
        yield line_case(f"NUL: in {column}", GOOD | {column: "a\0b"}, f".{column}", "NUL character at position 1")
        raw = json.dumps(GOOD | {column: "@"}).encode().replace(b"@", b"\0")
        yield line_case(f"NUL: bare in {column}", raw, "", "is not JSON")
        chat = CHAT | {column: [CHAT[column][0] | {"content": "\0"}]}
        yield line_case(f"NUL: in a message of {column}", chat, f".{column}[0].content", "NUL character")
    yield line_case("BOM: in the second line", b"\xef\xbb\xbf" + GOOD_LINE, "", "is not JSON")
    yield line_case("BOM: in the middle of a line", b'{"prompt": \xef\xbb\xbf"a"}', "", "is not JSON")
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        data = GOOD_LINE.decode().encode(encoding)
        yield Case(f"BOM: {encoding}", "rows.jsonl", lambda data=data: data, "is not (UTF-8|JSON)", "row 1")
    old_mac = GOOD_LINE.replace(b"\n", b"\r") * 2
    yield Case("CRLF: carriage returns alone", "rows.jsonl", lambda: old_mac, "is not JSON: Extra data", "row 1")
    split = GOOD_LINE.replace(b", ", b",\r\n")
    yield Case("CRLF: within a row", "rows.jsonl", lambda: split, "is not JSON", "row 1")


# ---- JSON


def json_cases() -> Iterator[Case]:
    """What is no JSON object, or says one thing twice, or goes too deep."""
    broken = {
        "cut off": b'{"prompt": "a", "chosen": "b"',
        "cut off in a string": b'{"prompt": "a',
        "comma at the end": b'{"prompt": "a",}',
        "single quotes": b"{'prompt': 'a'}",
        "bare key": b'{prompt: "a"}',
        "comment": b'{"prompt": "a"} // so',
        "undefined": b'{"prompt": undefined}',
        "two objects": b'{"prompt": "a"} {"prompt": "b"}',
        "no colon": b'{"prompt" "a"}',
        "bad escape": b'{"prompt": "\\x41"}',
        "tab in a string": b'{"prompt": "a\tb"}',
        "hexadecimal": b'{"margin": 0x10}',
        "leading zero": b'{"margin": 01}',
        "plus sign": b'{"margin": +1}',
        "Python's None": b'{"prompt": None}',
        "words": b"prompt chosen rejected",
        "XML": b"<prompt>a</prompt>",
    }
    for name, row in broken.items():
        yield line_case(f"JSON: {name}", row, "", "is not JSON")
    values = {"a number": b"1", "text": b'"a"', "null": b"null", "true": b"true", "a list": b"[1]", "pairs": b'[["a"]]'}
    for name, row in values.items():
        yield line_case(f"JSON: {name} for a row", row, "", "must be an object")
    for name in ("NaN", "Infinity", "-Infinity"):
        row = json.dumps(GOOD).replace("}", f', "margin": {name}}}').encode()
        yield line_case(f"JSON: {name}", row, "", f"holds {name}, which is not JSON")
    twice = {
        "a column": b'{"prompt": "a", "prompt": "b"}',
        "a column with the same value": b'{"prompt": "a", "prompt": "a"}',
        "an unread column": b'{"prompt": "a", "x": 1, "x": 1}',
        "a role": b'{"prompt": [{"role": "user", "role": "system", "content": "a"}]}',
        "content": b'{"prompt": [{"role": "user", "content": "a", "content": "b"}]}',
        "escaped": b'{"prompt": "a", "pr\\u006fmpt": "b"}',
    }
    for name, row in twice.items():
        yield line_case(f"keys twice: {name}", row, "", "has the key '.*' twice")
    for depth, (name, start, end) in product(
        (33, 1_000, 10_000, 100_000), (("lists", b"[", b"]"), ("objects", b'{"a":', b"}"))
    ):
        row = b'{"prompt": "a", "x": ' + start * depth + b"0" + end * depth + b"}"
        yield line_case(f"depth: {depth} {name}", row, "", r"is nested deeper than 32 \(max_depth\)")
    yield line_case("depth: 10000 open lists", b"[" * 10_000, "", "is nested deeper than 32|is not JSON")
    digits = b'{"prompt": "a", "margin": ' + b"9" * 5_000 + b"}"
    yield line_case("JSON: 5000 digits", digits, "", "a number with too many digits")


# ---- wrong types in every field of every basic form

BASIC: dict[str, dict[str, Any]] = {
    "pair": GOOD,
    "chat pair": CHAT,
    "implicit pair": {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "3"}]},
    "completion": {"prompt": "1+1?", "completion": "2"},
    "chat completion": {"prompt": [USER], "completion": [ASSISTANT]},
    "prompt": {"prompt": "1+1?"},
    "chat prompt": {"prompt": [USER]},
    "list": {"prompt": "1+1?", "responses": ["2", "3"], "scores": [1.0, 0.0]},
}
WRONG: dict[str, Any] = {"a number": 7, "a fraction": 1.5, "true": True, "an object": {"a": 1}, "no messages": []}


def type_cases() -> Iterator[Case]:
    """A value of a type that no field takes, in every field of every basic form."""
    for form, row in BASIC.items():
        for column, (name, value) in product(row, WRONG.items()):
            if column in ("responses", "scores"):
                reason = "must be a list|must be (2|one)|has no|no responses|at least"
            else:
                reason = "must be text|has no messages|must be a list|is text while"
            yield Case(
                f"types: {form}: {name} for {column}",
                "rows.jsonl",
                lambda row=row | {column: value}: json.dumps(row).encode(),
                reason,
                f"row 1.{column}",
            )
    for index, value in enumerate((None, True, {"a": 1}, "7", [7])):
        row = BASIC["list"] | {"scores": [1.0, value]}
        yield line_alone(f"types: list: score {index}", row, "row 1.scores[1]", "must be a number|is missing")
        row = BASIC["list"] | {"responses": ["2", value if value != "7" else 7]}
        yield line_alone(
            f"types: list: response {index}", row, "row 1.responses[1]*", "must be text|is missing|must be an"
        )


def line_alone(name: str, row: dict[str, Any], field: str | None, reason: str) -> Case:
    """A bad row that is the only one."""
    return Case(name, "rows.jsonl", lambda: json.dumps(row).encode(), reason, field)


def message_cases() -> Iterator[Case]:
    """Messages that no chat template could render as they are meant."""
    turns: dict[str, tuple[Any, str, str]] = {
        "text": ("hello", "", "must be an object with role and content"),
        "a number": (5, "", "must be an object with role and content"),
        "a list": ([USER], "", "must be an object with role and content"),
        "nothing": ({}, ".role", "must be one of"),
        "no role": ({"content": "a"}, ".role", "must be one of"),
        "no content": ({"role": "user"}, ".content", "must be text"),
        "unknown role": ({"role": "bot", "content": "a"}, ".role", "must be one of .* got 'bot'"),
        "role in capitals": ({"role": "User", "content": "a"}, ".role", "must be one of"),
        "role with a space": ({"role": "user ", "content": "a"}, ".role", "must be one of"),
        "role as number": ({"role": 1, "content": "a"}, ".role", "must be one of"),
        "role as list": ({"role": ["user"], "content": "a"}, ".role", "must be one of"),
        "content as number": ({"role": "user", "content": 1}, ".content", "must be text"),
        "content as object": ({"role": "user", "content": {"text": "a"}}, ".content", "must be text"),
        "no blocks": ({"role": "user", "content": []}, ".content", "has no blocks"),
        "a block of a number": ({"role": "user", "content": [1]}, ".content[0]", "must be a text block"),
        "image": ({"role": "user", "content": [{"type": "image"}]}, ".content[0].type", "must be 'text'.* 'image'"),
        "image by address": (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]},
            ".content[0].type",
            "must be 'text'",
        ),
        "audio": ({"role": "user", "content": [{"type": "input_audio"}]}, ".content[0].type", "must be 'text'"),
        "text block without text": ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text", "must be te"),
        "extra field": (USER | {"weight": 1}, "", "a field a message cannot carry here: 'weight'"),
        "key that is a path": (USER | {"../../etc": "x"}, "", "a field a message cannot carry here"),
    }
    for (name, (turn, place, reason)), column in product(turns.items(), ("prompt", "chosen")):
        row = CHAT | {column: [CHAT[column][0], turn]}
        yield line_case(f"messages: {name} in {column}", row, f".{column}[1]{place}", reason)
    calls: dict[str, tuple[Any, str]] = {
        "text": ("f()", ""),
        "a number": ([1], "[0]"),
        "no name": ([{"function": {"arguments": {}}}], "[0].function.name"),
        "arguments that are no JSON": ([{"function": {"name": "f", "arguments": "{"}}], "[0].function.arguments"),
        "arguments that are a list": ([{"function": {"name": "f", "arguments": [1]}}], "[0].function.arguments"),
        "another type": ([{"type": "shell", "function": {"name": "f"}}], "[0].type"),
    }
    for name, (value, place) in calls.items():
        row = CHAT | {"chosen": [ASSISTANT | {"tool_calls": value}]}
        yield line_case(f"tool calls: {name}", row, f".chosen[0].tool_calls{place}", "must be|is not JSON|is empty")
    tools: dict[str, tuple[Any, str]] = {
        "a number": (1, ""),
        "no JSON": ("[{", ""),
        "an object": ({"name": "f"}, ""),
        "no name": ([{"type": "function"}], "[0]"),
        "text in the list": (["f"], "[0]"),
    }
    for name, (value, place) in tools.items():
        yield line_case(f"tools: {name}", CHAT | {"tools": value}, f".tools{place}", "must be|is not JSON")
    for name, value in {"a list": [1], "no JSON": "{", "a number": 3}.items():
        row = CHAT | {"chat_template_kwargs": value}
        yield line_case(f"template: {name}", row, ".chat_template_kwargs", "must be|is not JSON")
    row = CHAT | {"chat_template_kwargs": {"chat_template": "{{ evil }}"}}
    yield line_case("template: another template", row, ".chat_template_kwargs.chat_template", "not for a row to say")
    yield line_case("images: a column of them", GOOD | {"images": ["a.png"]}, ".images", "holds images")
    yield line_case("images: one", GOOD | {"image": {"bytes": "", "path": "../a.png"}}, ".image", "holds an image")


NUMBERS = ("margin", "weight", "semantic_distance")
PARTNERS = {"chosen_reward": "rejected_reward", "chosen_uncertainty": "rejected_uncertainty"}


def long_cases() -> Iterator[Case]:
    """Refusals that would be longer than the headers they travel in."""
    deep: Any = "\0"
    for level in range(25):
        deep = {f"{level:0>60}": deep}
    tools = [{"type": "function", "function": {"name": "f", "parameters": deep}}]
    for name, row in {
        "deep places": CHAT | {"tools": tools},
        "wide roles": CHAT | {"prompt": [{"role": "\U0001f600" * 200, "content": "a"}]},
        "wide names": CHAT | {"prompt": [USER | {"\u4e2d" * 1000: 1}]},
    }.items():
        data = b"".join(json.dumps(row).encode() + b"\n" for _ in range(30))
        yield Case(f"long refusals: {name}", "rows.jsonl", lambda data=data: data, "at least 20 unusable", "row 1*")
    half = json.dumps({"\ud800": "a" * 600_000}).encode()
    yield Case("long refusals: a column of half a character", "rows.jsonl", lambda: half, "max_field_bytes", "row 1.?")
    data = b'{"prompt": 1}\n' * 30
    yield Case(
        "long refusals: a long name", "n" * 190 + ".jsonl", lambda data=data: data, "at least 20", "row 1.prompt"
    )


def number_cases() -> Iterator[Case]:
    """Numbers that are none, or that no margin can be."""
    wrong: dict[str, tuple[Any, str]] = {
        "text": ("0.5", "must be a number"),
        "true": (True, "must be a number"),
        "a list": ([0.5], "must be a number"),
        "an object": ({"value": 0.5}, "must be a number"),
    }
    fields = [(column, {}) for column in NUMBERS]
    fields += [(column, {partner: 0.5}) for column, partner in PARTNERS.items()]
    fields += [(partner, {column: 0.5}) for column, partner in PARTNERS.items()]
    for column, beside in fields:
        for name, (value, reason) in wrong.items():
            yield line_case(f"numbers: {name} for {column}", GOOD | beside | {column: value}, f".{column}", reason)
        for name, text in {"1e999": "1e999", "-1e999": "-1e999", "400 digits": "9" * 400}.items():
            row = json.dumps(GOOD | beside | {column: "@"}).replace('"@"', text).encode()
            yield line_case(f"numbers: {name} for {column}", row, f".{column}", "must be finite")
    for column in ("weight", "semantic_distance"):
        yield line_case(f"numbers: negative {column}", GOOD | {column: -0.5}, f".{column}", "must be")
    for column, partner in PARTNERS.items():
        yield line_case(f"numbers: {column} alone", GOOD | {column: 0.5}, f".{partner}", "is missing")
    row = GOOD | {"chosen_reward": 1e308, "rejected_reward": -1e308}
    yield line_case("numbers: a margin past all numbers", row, ".chosen_reward", "is not finite")


def row_cases() -> Iterator[Case]:
    """Rows that say nothing, or not all of it, and files that say two things."""
    pairs: dict[str, tuple[dict[str, Any], str | None, str]] = {
        "chosen is empty": (GOOD | {"chosen": ""}, ".chosen", "is empty"),
        "rejected is blank": (GOOD | {"rejected": " \n"}, ".rejected", "is empty"),
        "both are the same": (GOOD | {"rejected": "2"}, ".rejected", "is the same as chosen"),
        "no rejected": ({"prompt": "a", "chosen": "b"}, ".rejected", "is missing"),
        "no chosen": ({"prompt": "a", "rejected": "b"}, ".chosen", "is missing"),
        "chosen is null": (GOOD | {"chosen": None}, ".chosen", "is missing"),
        "nothing": ({}, "", "no column that says what it is"),
        "unread columns alone": ({"x": 1, "y": "z"}, "", "no column that says what it is"),
        "texts and messages": (GOOD | {"prompt": [USER]}, None, "text"),
        "a response by the user": (CHAT | {"chosen": [USER]}, ".chosen[0].role", "must be assistant"),
        "an empty response": (CHAT | {"chosen": [ASSISTANT | {"content": ""}]}, ".chosen", "is empty"),
    }
    for name, (row, field, reason) in pairs.items():
        yield Case(f"rows: {name}", "rows.jsonl", lambda row=row: lines(row), reason, f"row 2{field}" if field else "*")
    scored: dict[str, tuple[dict[str, Any], str]] = {
        "one response": ({"responses": ["a"], "scores": [1]}, "responses"),
        "too many responses": ({"responses": list(map(str, range(65))), "scores": list(range(65))}, "responses"),
        "a response twice": ({"responses": ["a", "a"], "scores": [1, 0]}, "responses"),
        "scores that are missing": ({"responses": ["a", "b"], "scores": [1]}, "scores"),
        "scores that are all the same": ({"responses": ["a", "b"], "scores": [1, 1]}, "scores"),
    }
    for name, (columns, field) in scored.items():
        row = {"prompt": "p", **columns}
        yield line_alone(f"rows: {name}", row, f"row 1.{field}", ".")
    kinds = {name: row for name, row in BASIC.items() if not name.startswith(("chat", "implicit"))}
    for (first, row), (second, other) in product(kinds.items(), kinds.items()):
        if first != second:
            data = json.dumps(row).encode() + b"\n" + json.dumps(other).encode()
            yield Case(f"kinds: {first}, then {second}", "rows.jsonl", lambda data=data: data, "one kind", "row 2")
