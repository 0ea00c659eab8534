"""Preference fine-tuning of OpenAI, Together and Fireworks: what was asked, and the preferred and the other output."""

from collections.abc import Mapping

from madpo.data.forms.form import Form, Pair
from madpo.data.messages import read_messages
from madpo.data.raw_row import RawRow


def _read(row: RawRow) -> Pair:
    asked = row["input"]
    if not isinstance(asked, Mapping):
        row.refuse("input", f"must be an object with messages, got {type(asked).__name__}")
    prompt = read_messages(asked.get("messages"), "input.messages", row)
    chosen, rejected = (read_messages(row[side], side, row) for side in ("preferred_output", "non_preferred_output"))
    # `parallel_tool_calls` is for the service that answers; no template reads it.
    return Pair(prompt, chosen, rejected, tools=asked.get("tools"))


OPENAI = Form(
    name="openai",
    reads={
        "prompt": "input.messages",
        "chosen": "preferred_output",
        "rejected": "non_preferred_output",
        "tools": "input.tools",
    },
    requires=frozenset({"input", "preferred_output", "non_preferred_output"}),
    read=_read,
)
