"""Rows of tables in memory: pandas, polars and Arrow, none of which is imported here."""

import math
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from numbers import Real
from typing import Any

from madpo.errors import InvalidArgumentError

_ROWS_AT_ONCE = 1_000


def table_rows(source: Any) -> Iterator[Mapping[str, Any]] | None:
    """The rows of a table; None for anything else. A cell without a value, NaN included, is None.

    Raises:
        InvalidArgumentError: It is a single column, or pandas' columns have names that are no text.
    """
    library, kind = type(source).__module__.partition(".")[0], type(source).__name__
    if library in ("pandas", "polars") and kind == "Series":
        raise InvalidArgumentError("a Series is one column; give a table whose columns are named, such as a DataFrame")
    match library, kind:
        case "pandas", "DataFrame":
            if unnamed := [name for name in source.columns if not isinstance(name, str)]:
                raise InvalidArgumentError(f"columns must be named by text, got {unnamed[0]!r}")
            return _pandas_rows(source)
        case "polars", "DataFrame":
            return _with_none(source.iter_rows(named=True))
        case "polars", "LazyFrame":
            return _with_none(source.collect().iter_rows(named=True))
        case "pyarrow", "Table" | "RecordBatch" | "RecordBatchReader":
            batches = [source] if kind == "RecordBatch" else source
            batches = source.to_batches(max_chunksize=_ROWS_AT_ONCE) if kind == "Table" else batches
            return _with_none(row for batch in batches for row in batch.to_pylist())
    return None


def plain(value: Any) -> Any:
    """What JSON has for arrays, numbers and times: for `json.dumps`, which asks for what it does not know.

    Times are ISO text, durations seconds.

    Raises:
        TypeError: It has nothing; names the type.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if type(value).__name__ == "datetime64":
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def is_nan(value: Any) -> bool:
    """Whether a cell is a number that is none, of Python or numpy."""
    return isinstance(value, Real) and math.isnan(value)


def is_absent(value: Any) -> bool:
    """Whether a cell says of itself that it has no value: None, and what pandas and numpy have for it."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or _is_no_time(value)


def _pandas_rows(frame: Any) -> Iterator[Mapping[str, Any]]:
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        some = frame.iloc[start : start + _ROWS_AT_ONCE].astype(object)
        # A cell may be a list, of which `notna` would ask each element.
        yield from _with_none(some.to_dict(orient="records"))


def _with_none(rows: Any) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        yield {name: None if is_nan(value) else value for name, value in row.items()}


def _is_no_time(value: Any) -> bool:
    return type(value).__name__ in ("datetime64", "timedelta64") and str(value) == "NaT"
