"""The forms of TRL: an explicit or an implicit prompt, in text or in chat messages.

Also here: chats whose responses repeat the whole conversation (UltraFeedback as binarized by Hugging Face),
completions and bare prompts.
"""

from madpo.data.forms.form import Answered, Asked, Form, Pair
from madpo.data.forms.implicit import part_chats, shared_text
from madpo.data.forms.transcripts import is_transcript
from madpo.data.messages import read_content, read_messages
from madpo.data.raw_row import RawRow
from madpo.types import Content, Message

_EXPLICIT = frozenset({"prompt", "chosen", "rejected"})
_IMPLICIT = frozenset({"chosen", "rejected"})
_MESSAGES = frozenset({"messages"})
"""The UltraFeedback columns repeat the chosen conversation."""


def _holds_lists(row: RawRow) -> bool:
    return isinstance(row["chosen"], list) or isinstance(row["rejected"], list)


def _is_full(row: RawRow) -> bool:
    """Whether both responses begin with a turn that no response begins with."""
    return all(
        isinstance(row[side], list) and row[side] and _role(row[side][0]) in ("system", "developer", "user")
        for side in ("chosen", "rejected")
    )


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, dict) else None


def _content(row: RawRow, column: str) -> Content:
    return read_content(row[column], column, row)


def _read_explicit(row: RawRow) -> Pair:
    return Pair(*(_content(row, column) for column in ("prompt", "chosen", "rejected")))


def _read_implicit_text(row: RawRow) -> Pair:
    chosen, rejected = _content(row, "chosen"), _content(row, "rejected")
    assert isinstance(chosen, str)
    assert isinstance(rejected, str)
    if chosen == rejected:
        row.refuse("rejected", "is the same as chosen: the pair says nothing")
    place = shared_text(chosen, rejected)
    if place == 0:
        row.refuse(
            "rejected", "shares no whole word with chosen at its beginning to be the prompt: give a prompt column"
        )
    return Pair(chosen[:place], chosen[place:], rejected[place:])


def _read_implicit_chat(row: RawRow) -> Pair:
    return part_chats(row, *(read_messages(row[side], side, row) for side in ("chosen", "rejected")))


def _read_full(row: RawRow) -> Pair:
    prompt = _content(row, "prompt")
    chosen, rejected = (read_messages(row[side], side, row) for side in ("chosen", "rejected"))
    if not isinstance(prompt, str):
        for side, turns in (("chosen", chosen), ("rejected", rejected)):
            if turns[: len(prompt)] != prompt or len(turns) == len(prompt):
                row.refuse(
                    side, "does not go on from the turns of prompt, and does not begin with an assistant's either"
                )
        return Pair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    pair = part_chats(row, chosen, rejected)
    if not any(turn.role == "user" and turn.content == prompt for turn in pair.prompt if isinstance(turn, Message)):
        row.refuse("prompt", "is not what a user says in the turns that chosen and rejected share")
    return pair


EXPLICIT_TEXT = Form(
    name="explicit-text",
    reads={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    requires=_EXPLICIT,
    allows=_MESSAGES,
    accepts=lambda row: not _holds_lists(row) and not isinstance(row["prompt"], list),
    read=_read_explicit,
)
EXPLICIT_CHAT = Form(
    name="explicit-chat",
    reads={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    requires=_EXPLICIT,
    allows=_MESSAGES,
    accepts=lambda row: (_holds_lists(row) or isinstance(row["prompt"], list)) and not _is_full(row),
    read=_read_explicit,
)
FULL_CONVERSATIONS = Form(
    name="full-conversations",
    reads={"prompt": "turns that chosen and rejected share", "chosen": "chosen", "rejected": "rejected"},
    requires=_EXPLICIT,
    allows=_MESSAGES,
    accepts=_is_full,
    read=_read_full,
)
IMPLICIT_TEXT = Form(
    name="implicit-text",
    reads={"prompt": "text that chosen and rejected share", "chosen": "chosen", "rejected": "rejected"},
    requires=_IMPLICIT,
    accepts=lambda row: not _holds_lists(row) and not is_transcript(row),
    read=_read_implicit_text,
    is_implicit=True,
    text_is_turn=False,
)
IMPLICIT_CHAT = Form(
    name="implicit-chat",
    reads={"prompt": "turns that chosen and rejected share", "chosen": "chosen", "rejected": "rejected"},
    requires=_IMPLICIT,
    allows=_MESSAGES,
    accepts=_holds_lists,
    read=_read_implicit_chat,
    is_implicit=True,
)
COMPLETION = Form(
    name="completion",
    reads={"prompt": "prompt", "completion": "completion"},
    requires=frozenset({"prompt", "completion"}),
    read=lambda row: Answered(_content(row, "prompt"), _content(row, "completion")),
)
PROMPT = Form(
    name="prompt",
    reads={"prompt": "prompt"},
    requires=frozenset({"prompt"}),
    read=lambda row: Asked(_content(row, "prompt")),
)
