"""Prompts that are not given by themselves: where two responses that begin alike part.

Chats part between turns: the prompt is what both share, up to the last turn behind which an assistant speaks on both
sides. Each side keeps at least one turn, also where one chat is the beginning of the other.

Texts part at the last safe place in what they share: before white space (so that a response carries its own, " blue"),
behind a line end, or behind a marker such as `<|assistant|>` or `[/INST]`; never within a word, a number, or a marker.
Both sides keep some text, also where one is the beginning of the other.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile

from madpo.data.forms.form import Pair
from madpo.data.raw_row import RawRow
from madpo.types import Message

_MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{2,16}\]")


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns at the beginning are the prompt; 0 when there is no prompt.

    Turns that both share but that cannot be prompt (no assistant's turn follows) belong to the responses.
    """
    pairs = zip(chosen, rejected, strict=False)
    same = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], pairs))
    for count in range(min(same, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[count].role == rejected[count].role == "assistant":
            return count
    return 0


def part_chats(row: RawRow, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Pair:
    """The pair of two conversations that begin alike. Raises InvalidPairError when they do not."""
    if chosen == rejected:
        row.refuse("rejected", "is the same as chosen: the pair says nothing")
    count = shared_turns(chosen, rejected)
    if count == 0:
        row.refuse("rejected", "shares no turns with chosen that an assistant answers in both: there is no prompt")
    parted = next((i for i, turns in enumerate(zip(chosen, rejected, strict=False)) if turns[0] != turns[1]), None)
    if parted is not None and chosen[parted].role != "assistant" and rejected[parted].role != "assistant":
        row.refuse(
            f"rejected[{parted}]",
            f"parts from chosen in a turn of {rejected[parted].role}: these are answers to two different prompts",
        )
    return Pair(chosen[:count], chosen[count:], rejected[count:])


def shared_text(chosen: str, rejected: str) -> int:
    """How many characters at the beginning are the prompt; 0 when no safe place leaves something on all sides."""
    pairs = zip(chosen, rejected, strict=False)
    same = sum(1 for _ in takewhile(lambda characters: characters[0] == characters[1], pairs))
    # A response of white space alone would say nothing.
    longest = min(same, len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1)
    markers = [_Markers(text, longest) for text in (chosen, rejected)]
    for place in range(longest, 0, -1):
        if all(_is_safe(text, place, found) for text, found in zip((chosen, rejected), markers, strict=True)):
            return place if chosen[:place].strip() else 0
    return 0


class _Markers:
    """The markers that touch the first `longest` characters of a text."""

    def __init__(self, text: str, longest: int) -> None:
        spans = [found.span() for found in _MARKER.finditer(text, 0, longest + 66) if found.start() < longest]
        self._starts, self._ends = [start for start, _ in spans], [end for _, end in spans]

    def end_of(self, place: int) -> int:
        """Where the last marker that begins before a place ends; 0 without one."""
        index = bisect_left(self._starts, place)
        return self._ends[index - 1] if index else 0


def _is_safe(text: str, place: int, markers: _Markers) -> bool:
    before, after = text[place - 1], text[place]
    end = markers.end_of(place)
    if end > place or (before == "\r" and after == "\n"):
        return False
    return before == "\n" or end == place or (after.isspace() and not before.isspace())
