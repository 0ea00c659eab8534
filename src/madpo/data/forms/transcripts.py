r"""Conversations written as one text, `\n\nHuman: ...\n\nAssistant: ...`: hh-rlhf, and the prompts of Nectar.

One space behind the colon belongs to the marker; nothing else of what is said is touched.
"""

import re
from typing import Any

from madpo.data.forms.form import Form, Pair, Ranked
from madpo.data.forms.implicit import part_chats
from madpo.data.forms.lists import read_entries, read_number
from madpo.data.messages import read_text
from madpo.data.raw_row import RawRow
from madpo.types import Message

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_BEGINNING = re.compile(r"\n*Human:")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(row: RawRow) -> bool:
    """Whether both responses are transcripts."""
    return all(
        isinstance(row[side], str) and _BEGINNING.match(row[side]) and "\n\nAssistant:" in row[side]
        for side in ("chosen", "rejected")
    )


def _read_transcript(value: Any, field: str, row: RawRow) -> tuple[Message, ...]:
    text = "\n\n" + read_text(value, field, row).lstrip("\n")
    before, *parts = _SPEAKER.split(text)
    if before or not parts:
        row.refuse(field, r"must begin with a turn of Human: '\n\nHuman: ...\n\nAssistant: ...'")
    return tuple(
        Message(_ROLES[speaker], said.removeprefix(" ")) for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _read_hh(row: RawRow) -> Pair:
    chosen, rejected = (_read_transcript(row[side], side, row) for side in ("chosen", "rejected"))
    return part_chats(row, chosen, rejected)


def _read_nectar(row: RawRow) -> Ranked:
    entries = read_entries(row["answers"], "answers", row)
    turns = _read_transcript(row["prompt"], "prompt", row)
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-1].content.strip():
        row.refuse("prompt", r"must end where Assistant is to answer: '...\n\nAssistant: '")
    answers = [read_text(entry.get("answer"), f"answers[{i}].answer", row) for i, entry in enumerate(entries)]
    ranks = tuple(-read_number(entry.get("rank"), f"answers[{i}].rank", row) for i, entry in enumerate(entries))
    return Ranked(turns[:-1], tuple((Message("assistant", answer),) for answer in answers), ranks, are_rewards=False)


HH_RLHF = Form(
    name="hh-rlhf",
    reads={"prompt": "turns that chosen and rejected share", "chosen": "chosen", "rejected": "rejected"},
    requires=frozenset({"chosen", "rejected"}),
    accepts=is_transcript,
    read=_read_hh,
    is_implicit=True,
)
NECTAR = Form(
    name="nectar",
    reads={"prompt": "prompt", "responses": "answers[].answer", "scores": "answers[].rank, 1 is best"},
    requires=frozenset({"prompt", "answers"}),
    read=_read_nectar,
)
