"""Which tokens of a response count: in losses, in log-probs, in lengths that a method divides by.

Of a text and of one assistant's turn all do. A response of several turns holds words that the model never says, of
users and of tools, and the marks before its own turns: they are read and not learned. Masks are kept as the lengths of
runs, for nearly all responses have none and the others few turns.
"""

from collections.abc import Iterable
from itertools import accumulate, chain, groupby

LossMask = tuple[int, ...]
"""Lengths of a response's runs of tokens, counted and left out in turn, the first one counted and perhaps 0 long; empty
where all tokens count."""


def mask_of(flags: Iterable[bool]) -> LossMask:
    """The mask of tokens that are True where they count."""
    runs = [(counts, sum(1 for _ in run)) for counts, run in groupby(flags)]
    if all(counts for counts, _ in runs):
        return ()
    lengths = tuple(length for _, length in runs)
    return lengths if runs[0][0] else (0, *lengths)


def counted_places(mask: LossMask, length: int) -> list[int]:
    """Places of the tokens that count, of a response of `length` tokens."""
    if not mask:
        return list(range(length))
    return list(chain.from_iterable(range(start, end) for start, end, counts in spans(mask, length) if counts))


def counted_tokens(mask: LossMask, length: int) -> int:
    """Number of tokens that count."""
    return sum(mask[::2]) if mask else length


def cut_mask(mask: LossMask, length: int) -> LossMask:
    """The mask of the first `length` tokens."""
    kept = spans(mask, length)
    if not any(end > start and not counts for start, end, counts in kept):
        return ()
    return tuple(end - start for start, end, _ in kept)


def spans(mask: LossMask, length: int) -> list[tuple[int, int, bool]]:
    """Start, end and whether it counts, of each run within the first `length` tokens."""
    ends = [min(end, length) for end in accumulate(mask or (length,))]
    starts = [0, *ends[:-1]]
    return [
        (start, end, number % 2 == 0)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        if end > start or number == 0
    ]
