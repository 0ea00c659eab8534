"""Two or more responses to a prompt, scored or ranked."""

import math
from collections.abc import Mapping
from typing import Any

from madpo.data.forms.form import Form, Ranked
from madpo.data.messages import read_content
from madpo.data.raw_row import RawRow

MAX_RESPONSES = 64
"""Longest list of responses."""


def read_entries(value: Any, field: str, row: RawRow) -> list[Mapping[str, Any]]:
    """Objects, one per response."""
    entries = _read_list(value, field, row)
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            row.refuse(f"{field}[{index}]", f"must be an object, got {type(entry).__name__}")
    return entries


def read_number(value: Any, field: str, row: RawRow) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        row.refuse(field, f"must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        row.refuse(field, f"must be finite, got {number}")
    return number


def _read_list(value: Any, field: str, row: RawRow) -> list[Any]:
    if not isinstance(value, list):
        row.refuse(field, f"must be a list, got {type(value).__name__}")
    if not 2 <= len(value) <= MAX_RESPONSES:
        row.refuse(field, f"must be 2 to {MAX_RESPONSES} responses, got {len(value)}")
    return value


def _read_scored(row: RawRow) -> Ranked:
    prompt = read_content(row["prompt"], "prompt", row)
    responses = _read_list(row["responses"], "responses", row)
    scores = row["scores"]
    if not isinstance(scores, list):
        row.refuse("scores", f"must be a list, got {type(scores).__name__}")
    if len(scores) != len(responses):
        row.refuse("scores", f"must be one per response, {len(responses)}, got {len(scores)}")
    contents = tuple(read_content(each, f"responses[{i}]", row) for i, each in enumerate(responses))
    numbers = tuple(read_number(score, f"scores[{i}]", row) for i, score in enumerate(scores))
    return Ranked(prompt, contents, numbers, are_rewards=True)


def _read_nemo(row: RawRow) -> Ranked:
    prompt = read_content(row["context"], "context", row)
    entries = read_entries(row["completions"], "completions", row)
    contents = tuple(
        read_content(entry.get("completion"), f"completions[{i}].completion", row) for i, entry in enumerate(entries)
    )
    ranks = tuple(-read_number(entry.get("rank"), f"completions[{i}].rank", row) for i, entry in enumerate(entries))
    return Ranked(prompt, contents, ranks, are_rewards=False)


SCORED_LIST = Form(
    name="scored-list",
    reads={"prompt": "prompt", "responses": "responses[]", "scores": "scores[], higher is better"},
    requires=frozenset({"prompt", "responses", "scores"}),
    read=_read_scored,
)
NEMO_RL = Form(
    name="nemo-rl",
    reads={
        "prompt": "context",
        "responses": "completions[].completion",
        "scores": "completions[].rank, lower is better",
    },
    requires=frozenset({"context", "completions"}),
    read=_read_nemo,
)
