"""A question with two answers, under the names of Intel, Argilla, icr and NeMo-Aligner.

What is called a question, an instruction or an input is what a user says, and so a chat of one turn; NeMo-Aligner's
prompt is text as the model reads it.
"""

from typing import Any

from madpo.data.forms.form import Form, Pair
from madpo.data.messages import read_content
from madpo.data.raw_row import RawRow
from madpo.types import Content, Message

_PLAIN = ("chosen", "rejected")
_RESPONSES = ("chosen_response", "rejected_response")


def as_turns(value: Any, role: str, field: str, row: RawRow) -> tuple[Message, ...]:
    """What one side says: a text, or messages."""
    content: Content = read_content(value, field, row)
    return (Message(role, content),) if isinstance(content, str) else content


def _question_form(name: str, question: str, answers: tuple[str, str]) -> Form:
    chosen, rejected = answers

    def read(row: RawRow) -> Pair:
        return Pair(
            as_turns(row[question], "user", question, row),
            *(as_turns(row[side], "assistant", side, row) for side in answers),
        )

    return Form(
        name=name,
        reads={"prompt": question, "chosen": chosen, "rejected": rejected},
        requires=frozenset({question, *answers}),
        read=read,
    )


INTEL = _question_form("intel", "question", _PLAIN)
ICR = _question_form("icr", "input", _PLAIN)
ARGILLA = _question_form("argilla", "instruction", _RESPONSES)
ARGILLA_QUESTION = _question_form("argilla-question", "question", _RESPONSES)
NEMO_ALIGNER = Form(
    name="nemo-aligner",
    reads={"prompt": "prompt", "chosen": "chosen_response", "rejected": "rejected_response"},
    requires=frozenset({"prompt", *_RESPONSES}),
    read=lambda row: Pair(*(read_content(row[column], column, row) for column in ("prompt", *_RESPONSES))),
)
