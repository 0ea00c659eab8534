"""What a form of rows is, and what reading a row gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from madpo.data.raw_row import RawRow
from madpo.types import Content


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with two responses."""

    prompt: Content
    chosen: Content
    rejected: Content
    tools: Any = None
    """As found within another column; that of the row itself is read for every form."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A prompt with two or more responses, better ones with higher scores."""

    prompt: Content
    responses: tuple[Content, ...]
    scores: tuple[float, ...]
    are_rewards: bool
    """Whether the scores measure something; else they are ranks, turned around."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with one response."""

    prompt: Content
    completion: Content


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt alone."""

    prompt: Content


Reading = Pair | Ranked | Answered | Asked


def _accept(_: RawRow) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to lay out a row. It fits a row by its columns, and where others have the same ones, by their values.

    A form takes part in finding what a row is only by signature columns: those that some form requires. A row fits
    when it has all that the form requires and no other signature column than those the form knows about.
    """

    name: str
    reads: Mapping[str, str]
    """Where prompt, chosen, rejected, responses, scores or completion come from, for people and for errors."""
    requires: frozenset[str]
    allows: frozenset[str] = frozenset()
    """Signature columns of other forms that rows of this one may have too."""
    read: Callable[[RawRow], Reading]
    """Raises InvalidPairError naming the place."""
    accepts: Callable[[RawRow], bool] = _accept
    is_implicit: bool = False
    """The prompt is a part of the responses; then a column for it that holds null is a mistake."""
    gives_way: bool = False
    """Files have its columns for other things too: they count only where no form without this fits."""
    text_is_turn: bool = True
    """Plain texts are what a user and an assistant say, so a system prompt can stand before them."""
