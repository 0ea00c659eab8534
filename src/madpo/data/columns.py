"""Columns that mean something, and how a file that calls them otherwise is read."""

from collections.abc import Iterable, Mapping
from typing import Any

from madpo.data.raw_row import RawRow, refuse
from madpo.errors import InvalidArgumentError
from madpo.types.columns import COLUMNS, OPTION_COLUMNS

PAIR_COLUMNS = tuple(column.file_name for column in COLUMNS if column.of_pairs)
"""What any form of preference pair may have beside its texts."""

ROW_COLUMNS = (
    "system",
    *OPTION_COLUMNS,
    *(column.file_name for column in COLUMNS if column.is_optional and not column.of_pairs),
)
"""What any row may have."""

ALIASES = {alias: column.file_name for column in COLUMNS for alias in column.aliases}

_GIVING_WAY = frozenset(alias for column in COLUMNS if column.sort == "name" for alias in column.aliases)

NUMBER_COLUMNS = frozenset(
    name for column in COLUMNS if column.sort == "number" for name in (column.file_name, *column.aliases)
)
"""Columns of files, under all their names, that hold a number."""


class ColumnMap:
    """Which column of the file is read as which of ours.

    Args:
        columns: Our name to the file's; "" leaves a column of that name unread. A column that is not named here is read
            under its own name, or as what `ALIASES` says.
        known: All names that any form reads.

    Raises:
        InvalidArgumentError: A name that no form reads, or one column of the file for two of ours.
    """

    def __init__(self, columns: Mapping[str, str], *, known: Iterable[str]) -> None:
        self._known = frozenset(known)
        self._ignored = frozenset(ours for ours, given in columns.items() if not given)
        self._ours = {given: ours for ours, given in columns.items() if given}
        self._unseen = set(self._ours)
        if unknown := sorted(ours for ours, given in columns.items() if given and ours not in self._known):
            self._refuse(unknown[0], f"is no column that is read; columns: {', '.join(sorted(self._known))}")
        if len(self._ours) < len(columns) - len(self._ignored):
            given = [given for given in columns.values() if given]
            twice = next(name for name in given if given.count(name) > 1)
            self._refuse(twice, "is given for two columns")

    def read(self, value: Any, number: int) -> RawRow:
        """The row's known columns by our names. Raises InvalidPairError for anything but an object."""
        if not isinstance(value, Mapping):
            refuse(number, "", f"must be an object with named fields, got {type(value).__name__}")
        values: dict[str, Any] = {}
        names = {ours: given for given, ours in self._ours.items()}
        nulls: set[str] = set()
        unread: list[str] = []
        for given, part in value.items():
            ours = self.name(given)
            if ours is None or self._gives_way(given, ours, value):
                unread.append(str(given))
                continue
            self._unseen.discard(given)
            if part is None:
                nulls.add(ours)
                continue
            if ours in values:
                refuse(number, given, f"is read as {ours}, and so is {names.get(ours, ours)}: leave one of them unread")
            values[ours] = part
            if ours != given:
                names[ours] = given
        return RawRow(number, values, names, frozenset(nulls - values.keys()), tuple(unread))

    def reads(self, given: str) -> bool:
        """Whether a column of the file is read."""
        return self.name(given) is not None

    def check_seen(self) -> None:
        """Raises InvalidArgumentError when a column that was to be read under another name is in no row."""
        if self._unseen:
            given = min(self._unseen)
            self._refuse(self._ours[given], f"is to be read from {given!r:.60}, a column that no row has")

    def name(self, given: Any) -> str | None:
        """Our name for a column of the file; None when it is not read."""
        if not isinstance(given, str):
            return None
        if given in self._ours:
            return self._ours[given]
        ours = ALIASES.get(given, given)
        # A column whose name is taken by another of the file's is not read.
        is_read = ours in self._known and not {given, ours} & self._ignored and ours not in self._ours.values()
        return ours if is_read else None

    def _gives_way(self, given: str, ours: str, row: Mapping[Any, Any]) -> bool:
        """Whether another name of a name is left unread: the row has the column itself, or what it holds is no text."""
        if given not in _GIVING_WAY or given in self._ours:
            return False
        return row.get(ours) is not None or not isinstance(row[given], str)

    @staticmethod
    def _refuse(field: str, reason: str) -> None:
        raise InvalidArgumentError.in_field(f"columns.{field}", reason)
