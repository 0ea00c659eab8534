"""One row of an uploaded file, before it is known what it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from madpo.errors import InvalidPairError


def refuse(row: int, field: str, reason: str) -> NoReturn:
    """Raise the InvalidPairError of a row; `field` is empty when the whole row is meant."""
    name = f"row {row}.{field}" if field else f"row {row}"
    raise InvalidPairError.in_field(name, reason)


@dataclass(frozen=True, slots=True)
class RawRow:
    """The columns of a row that hold something, by the names we read them under."""

    number: int
    """From 1, for errors."""
    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    """What the file calls a column that is read under another name."""
    nulls: frozenset[str] = frozenset()
    """Columns that hold null in this row."""
    unread: tuple[str, ...] = ()
    """Columns of the file that are read as nothing."""

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def __getitem__(self, column: str) -> Any:
        """The column's value. Raises InvalidPairError when it is missing."""
        if column not in self.values:
            self.refuse(column, "is missing")
        return self.values[column]

    def name(self, field: str) -> str:
        """What the file calls a field; `field` is a column, or a place within one such as `prompt[0].role`."""
        for column, given in self.names.items():
            if field == column or field.startswith((f"{column}.", f"{column}[")):
                return given + field[len(column) :]
        return field

    def refuse(self, field: str, reason: str) -> NoReturn:
        """Raise the InvalidPairError of one of its fields, or of the whole row when `field` is empty."""
        refuse(self.number, self.name(field), reason)
