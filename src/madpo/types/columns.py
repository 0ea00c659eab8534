"""The columns of dataset rows, in one table; what reads, stores, sends and checks rows goes by it.

A new column of a pair is a line here, a field of `PreferencePair` and of the contract's `DatasetRow`, and where methods
read it of `Requirements` and `LossBatch`; wire, storage, CSV, checks, rows and batches follow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Sort = Literal["content", "number", "name"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column beside the prompt, the responses of a list and what the chat template is given."""

    name: str
    """The field of the row, also in storage and on the wire."""
    sort: Sort
    """Content: text or messages. Number: float64. Name: a short text of the file about the row."""
    is_optional: bool = True
    """Whether a row of a kind that may have it need not."""
    of_pairs: bool = False
    """Only preference pairs may have it."""
    uploaded_as: str = ""
    """What files call it, where that is another name."""
    aliases: tuple[str, ...] = ()
    """Other names under which files have it. That of a name gives way to the column itself in a row that has both."""
    is_checked: bool = False
    """A number that is read as it is, from 0 to `most`. Rewards and margins are not: they belong together."""
    most: float = math.inf
    partner: str = ""
    """The column that must be given with it."""
    requirement: str = ""
    """The flag of `madpo.losses.method.Requirements` that the column alone meets; a number is then a field of that name
    of `LossBatch`. Margins may come from elsewhere."""

    @property
    def file_name(self) -> str:
        """The name it has in files."""
        return self.uploaded_as or self.name


COLUMNS = (
    Column("prompt", "content", is_optional=False),
    Column("chosen", "content", is_optional=False),
    Column("rejected", "content", is_optional=False),
    Column("completion", "content", is_optional=False),
    Column("gold", "content", of_pairs=True, requirement="gold"),
    Column("reward_margin", "number", of_pairs=True, uploaded_as="margin"),
    Column(
        "chosen_uncertainty",
        "number",
        of_pairs=True,
        is_checked=True,
        partner="rejected_uncertainty",
        requirement="uncertainty",
    ),
    Column(
        "rejected_uncertainty",
        "number",
        of_pairs=True,
        is_checked=True,
        partner="chosen_uncertainty",
        requirement="uncertainty",
    ),
    Column("semantic_distance", "number", of_pairs=True, is_checked=True, most=2.0, requirement="semantic_distance"),
    Column("chosen_reward", "number", of_pairs=True, aliases=("score_chosen", "chosen_score")),
    Column("rejected_reward", "number", of_pairs=True, aliases=("score_rejected", "rejected_score")),
    Column("weight", "number", is_checked=True),
    Column("id", "name"),
    Column("source", "name", aliases=("subset",)),
)
"""In the order in which rows are stored."""

OPTION_COLUMNS = {"tools": "tools", "chat_template_kwargs": "template_kwargs"}
"""Columns of what the chat template is given, and the fields of `ChatOptions` they are."""

CONTENTS = tuple(column.name for column in COLUMNS if column.sort == "content")
NUMBERS = tuple(column.name for column in COLUMNS if column.sort == "number")
NAMES = tuple(column.name for column in COLUMNS if column.sort == "name")
OPTIONAL = (
    *(column.name for column in COLUMNS if column.is_optional and column.sort != "name"),
    *OPTION_COLUMNS,
    *NAMES,
)
"""Columns of which a dataset says whether all of its rows have them."""
REQUIREMENTS = tuple(dict.fromkeys(column.requirement for column in COLUMNS if column.requirement))
"""Flags of `madpo.losses.method.Requirements` that columns meet."""


def required_columns(flags: object) -> Iterator[Column]:
    """The columns that a method reads, given its `Requirements`."""
    return (column for column in COLUMNS if column.requirement and getattr(flags, column.requirement))
