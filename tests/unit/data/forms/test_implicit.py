"""Where responses that begin alike part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madpo.data.forms.implicit import shared_text, shared_turns
from madpo.types import Message
from tests import data_counts
from tests.unit.data.forms.rows import TEXTS
from tests.unit.data.forms.test_round_trip import MANY

pytestmark = pytest.mark.data

U, V, A, B, T, S = (
    Message(role, text)
    for role, text in (
        ("user", "u"),
        ("user", "v"),
        ("assistant", "a"),
        ("assistant", "b"),
        ("tool", "t"),
        ("system", "s"),
    )
)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue", "The sky is", "The sky"),
        ("The sky is", "The sky is blue", "The sky"),
        ("The sky is ", "The sky is blue", "The sky"),
        ("The sky blueish", "The sky blue", "The sky"),
        ("The sky isn't", "The sky is", "The sky"),
        ("In 1984 it", "In 1985 it", "In"),
        ("Say:\nyes", "Say:\nno", "Say:\n"),
        ("Say:\r\nyes", "Say:\r\nno", "Say:\r\n"),
        ("Say:\n\n  x = 1", "Say:\n\n  y = 2", "Say:\n\n"),
        ("Say:\r\nyes", "Say:\rno", "Say:"),
        ("Q: x A:yes", "Q: x A:no", "Q: x"),
        ("<|user|>x<|assistant|>yes", "<|user|>x<|assistant|>no", "<|user|>x<|assistant|>"),
        ("<|user|>x<|yes|>a", "<|user|>x<|no|>b", "<|user|>"),
        ("[INST] x [/INST]yes", "[INST] x [/INST]no", "[INST] x [/INST]"),
        ("a  b", "a  c", "a"),
        ("a\tb", "a\tc", "a"),
        ("a b", "a\nb", "a"),
        ("中文 甲", "中文 乙", "中文"),
        ("é x", "é y", "é"),
        ("\n\nyes", "\n\nno", ""),
        ("  yes", "  no", ""),
        ("yes", "no", ""),
        ("yes", "yes", ""),
        ("a", "a b", ""),
        ("", "a b", ""),
        ("a b", "", ""),
        ("a ", "a  ", ""),
    ],
)
def test_texts_part_at_the_last_safe_place(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: shared_text(chosen, rejected)] == prompt
    assert shared_text(rejected, chosen) == len(prompt)


def test_a_long_text_full_of_markers_is_parted_in_little_time() -> None:
    """Looking at every marker for every character would take hours here."""
    shared = "<x>" * 80_000 + "y" * 200_000

    assert shared_text(shared + " a", shared + "b") == 3 * 80_000


@pytest.mark.parametrize(
    ("chosen", "rejected", "count"),
    [
        ((U, A), (U, B), 1),
        ((S, U, A), (S, U, B), 2),
        ((U, A, V, A), (U, A, V, B), 3),
        ((U, A, T, A), (U, A, T, B), 3),
        ((U, A), (U, A, V, B), 1),
        ((U, A, T, B), (U, A), 1),
        ((U, A, B), (U, A), 1),
        ((U, A), (V, A), 0),
        ((A,), (B,), 0),
        ((U,), (U, A), 0),
        ((U, A), (U,), 0),
        ((), (U, A), 0),
        ((U, V, A), (U, V, B), 2),
        ((U, A, V), (U, A, U), 1),
    ],
)
def test_chats_part_before_the_assistants_turns(chosen: tuple, rejected: tuple, count: int) -> None:
    assert shared_turns(chosen, rejected) == shared_turns(rejected, chosen) == count


PIECES = st.lists(
    st.sampled_from(["a", "ab", " ", "\n", "\r\n", "<|x|>", "[INST]", "1", "é", ".", "中", "\u00a0"]), max_size=8
)


@MANY
@given(TEXTS | PIECES.map("".join), *2 * [TEXTS | PIECES.map("".join)])
def test_a_cut_of_texts_is_within_nothing_and_leaves_something(shared: str, first: str, second: str) -> None:
    data_counts.add("property examples")
    chosen, rejected = shared + first, shared + second
    place = shared_text(chosen, rejected)

    assert shared_text(rejected, chosen) == place
    if place == 0:
        return
    assert chosen[:place] == rejected[:place]
    assert chosen[:place].strip()
    for text in (chosen, rejected):
        before, after = text[place - 1], text[place]
        assert text[place:].strip()
        assert not (before.isalnum() and after.isalnum())
        assert (before, after) != ("\r", "\n")
        assert before == "\n" or after.isspace() or text[:place].endswith((">", "]"))


@MANY
@given(*3 * [st.lists(st.sampled_from([U, V, A, B, T, S]), max_size=5)])
def test_a_cut_of_chats_is_before_an_assistant_on_both_sides_and_as_late_as_can_be(
    shared: list[Message], first: list[Message], second: list[Message]
) -> None:
    data_counts.add("property examples")
    chosen, rejected = shared + first, shared + second
    possible = [
        count
        for count in range(1, min(len(chosen), len(rejected)))
        if chosen[:count] == rejected[:count] and chosen[count].role == rejected[count].role == "assistant"
    ]

    assert shared_turns(chosen, rejected) == max(possible, default=0)
