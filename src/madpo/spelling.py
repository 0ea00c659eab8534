"""Words of messages: what may have been meant by a name that there is not, and how many of a thing there are."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean training.seed?`, or nothing when no known name is like it.

    Of names with dots the last part may be enough: `weight_decay` is like `training.optimizer.weight_decay`.
    """
    names = list(known)
    found = [each for each in names if each.casefold() == name.casefold() or each.endswith(f".{name}")]
    found = found or get_close_matches(name, names, n=1, cutoff=0.7)
    if not found:
        leaves = {each.rpartition(".")[2]: each for each in reversed(names)}
        found = [leaves[leaf] for leaf in get_close_matches(name.rpartition(".")[2], leaves, n=1, cutoff=0.7)]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The names that are most like one that there is not, the likest first; never none."""
    return get_close_matches(name, list(known), n=count, cutoff=0.0)


def number_of(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
