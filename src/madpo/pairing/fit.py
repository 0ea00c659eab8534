"""Which responses to a prompt are fit to be compared."""

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

_WORD = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 3


@dataclass(slots=True)
class LeftOut:
    """How many responses were left out, and why."""

    empty: int = 0
    """Nothing was said."""
    unfinished: int = 0
    """Cut off by the token limit: what they would have said, nobody knows."""
    identical: int = 0
    """The same text as another response to the prompt."""
    similar: int = 0
    """Nearly the text of another response to the prompt."""


def fit_responses(
    texts: Sequence[str], finished: Sequence[bool], *, max_similarity: float, keep_unfinished: bool, left_out: LeftOut
) -> list[int]:
    """Places of the responses to a prompt that may be compared; of those much like each other the first.

    Args:
        texts: All of them.
        finished: Whether each was ended by the policy.
        max_similarity: Highest `similarity` to one that stays; 1 leaves out none but identical ones.
        keep_unfinished: Whether those cut off stay.
        left_out: Counts what does not stay.
    """
    seen: set[str] = set()
    kept: list[tuple[int, Set[tuple[str, ...]]]] = []
    for place, (text, is_whole) in enumerate(zip(texts, finished, strict=True)):
        if not text.strip():
            left_out.empty += 1
        elif not is_whole and not keep_unfinished:
            left_out.unfinished += 1
        elif text in seen:
            left_out.identical += 1
        else:
            seen.add(text)
            shingles = frozenset(_shingles(text))
            if any(_overlap(shingles, other) > max_similarity for _, other in kept):
                left_out.similar += 1
            else:
                kept.append((place, shingles))
    return [place for place, _ in kept]


def similarity(first: str, second: str) -> float:
    """Share of word trigrams that two texts have in common, of all they have, in [0, 1] (Jaccard).

    A text of fewer words is one piece, and words are runs of letters and digits, or single other signs.
    """
    return _overlap(frozenset(_shingles(first)), frozenset(_shingles(second)))


def _shingles(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    for start in range(max(1, len(words) - _SHINGLE + 1)):
        yield tuple(words[start : start + _SHINGLE])


def _overlap(first: Set[tuple[str, ...]], second: Set[tuple[str, ...]]) -> float:
    return len(first & second) / len(first | second)
