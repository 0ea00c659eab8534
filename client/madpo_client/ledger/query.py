"""Questions to a ledger, answered by DuckDB in memory.

An expression sees the table `ledger` and nothing else: no file, no network, no variable of this process.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from madpo.errors import InvalidArgumentError
from madpo_client.ledger.table import TEXT_COLUMNS

_CONFIGURATION: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "python_enable_replacements": False,
}
_LAST_VISITS = """
    SELECT * FROM ledger
    QUALIFY row_number() OVER (PARTITION BY "row" ORDER BY step DESC, implicit_margin, loss) = 1
"""


@contextmanager
def asking(table: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that knows `table` as `ledger`.

    Raises:
        InvalidArgumentError: In place of every error of DuckDB; names the columns there are.
    """
    with duckdb.connect(":memory:", config=_CONFIGURATION) as connection:
        connection.execute("SET lock_configuration = true")
        connection.register("ledger", table)
        try:
            yield connection
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0].strip()
            columns = ", ".join(table.column_names)
            raise InvalidArgumentError(f"the ledger cannot answer: {reason} (its columns: {columns})") from error


def last_visits(table: pa.Table) -> pa.Table:
    """The last row of each pair, in order of the pairs."""
    with asking(table) as connection:
        return connection.sql(_LAST_VISITS).order('"row"').to_arrow_table()


def of_epoch(table: pa.Table, epoch: int) -> pa.Table:
    """The rows of one epoch. Raises InvalidArgumentError when there are none, naming the epochs there are."""
    with asking(table) as connection:
        epochs = [found for (found,) in connection.sql("SELECT DISTINCT epoch FROM ledger ORDER BY epoch").fetchall()]
        if epoch not in epochs:
            raise InvalidArgumentError(f"the ledger has no epoch {epoch}; it has {epochs[0]} to {epochs[-1]}")
        return connection.view("ledger").filter(f"epoch = {epoch}").to_arrow_table()


def matching(table: pa.Table, where: str) -> pa.Table:
    """The rows for which an SQL expression holds.

    Raises:
        InvalidArgumentError: The expression is none, or names a column there is not.
    """
    with asking(table) as connection:
        return connection.view("ledger").filter(duckdb.SQLExpression(where)).to_arrow_table()


def ordered(table: pa.Table, by: str, *, descending: bool) -> pa.Table:
    """The rows sorted by a column or SQL expression; nulls last, equal ones by row and step.

    Raises:
        InvalidArgumentError: The expression is none, or names a column there is not.
    """
    with asking(table) as connection:
        key = duckdb.SQLExpression(by)
        key = key.desc() if descending else key.asc()
        ties = [duckdb.ColumnExpression(name).asc() for name in ("row", "step")]
        return connection.view("ledger").sort(key.nulls_last(), *ties).to_arrow_table()


def mentions(expression: str, name: str) -> bool:
    """Whether an expression may use a column; wrong only where a text constant contains the name."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", expression, re.IGNORECASE) is not None


def mentions_text(expression: str) -> bool:
    """Whether an expression may use the pairs' texts."""
    return any(mentions(expression, name) for name in TEXT_COLUMNS)
