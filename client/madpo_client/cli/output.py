"""What commands print: one thing field by field, many as a table, both as JSON on request."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from madpo_client.printable import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the id only, for scripts.")]

_GAP = 2
_WHOLE = 1000
"""The width of what is not shown on a terminal: nothing is left out or cut."""
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Where the terminal is too narrow, columns that can give way do, down to their `shortest`; then columns are left out,
    those of the highest `rank` first. Rank 0 always stays whole: what commands are given, such as ids.
    """

    title: str
    value: Callable[[Any], Any]
    """Of a row, what the cell says; None says nothing."""
    rank: int = 0
    shortest: int | None = None
    is_right: bool = False


def show(value: "DataclassInstance | Mapping[str, Any]", *, as_json: bool) -> None:
    """One thing, field by field."""
    fields = _fields(value)
    if as_json:
        print(json.dumps(fields, indent=2))
        return
    grid = Table(show_header=False, box=None)
    for name, field in fields.items():
        if field not in (None, "", (), [], {}):
            grid.add_row(f"[bold]{name}[/]", _field_cell(name, field))
    console().print(grid)


def table(rows: Sequence[Any], columns: Sequence[Column], *, as_json: bool, nothing: str = "") -> None:
    """Many things of a kind; as JSON with all their fields.

    Args:
        rows: Dataclasses or mappings.
        columns: In the order they stand in.
        as_json: One document instead.
        nothing: What to say where there is none.
    """
    if as_json:
        print(json.dumps([_fields(row) for row in rows], indent=2))
        return
    if not rows and nothing:
        print(nothing)
        return
    out = console()
    cells = {column.title: [_text(column.value(row)) for row in rows] for column in columns}
    widths = _fitted(columns, cells, out.width if out.is_terminal else _WHOLE)
    shown = [column for column in columns if column.title in widths]
    _print_line(out, [Text(column.title, style="bold") for column in shown], shown, widths)
    for index in range(len(rows)):
        _print_line(out, [cells[column.title][index] for column in shown], shown, widths)


def _print_line(out: Console, cells: Sequence[Text], columns: Sequence[Column], widths: Mapping[str, int]) -> None:
    line = Text()
    for cell, column in zip(cells, columns, strict=True):
        cell.truncate(widths[column.title], overflow="ellipsis")
        cell.align("right" if column.is_right else "left", widths[column.title])
        line.append(" " * _GAP if line else "").append_text(cell)
    line.rstrip()
    # Not folded by us: where the terminal is narrower than an id, it breaks the line itself.
    out.print(line, soft_wrap=True)


def _fitted(columns: Sequence[Column], cells: Mapping[str, Sequence[Any]], width: int) -> dict[str, int]:
    """The widths of the columns that are shown."""
    shown = {column.title: column for column in columns}
    natural = {title: max([len(title), *(cell.cell_len for cell in cells[title])]) for title in shown}
    least = {
        title: natural[title] if column.shortest is None else min(natural[title], column.shortest)
        for title, column in shown.items()
    }
    says_nothing = {title: not any(cell.plain for cell in cells[title]) for title in shown}
    while _total({title: least[title] for title in shown}) > width:
        title, column = max(shown.items(), key=lambda each: (says_nothing[each[0]], each[1].rank))
        if column.rank == 0:
            break
        del shown[title]
    widths = {title: least[title] for title in shown}
    spare = width - _total(widths)
    for title in sorted(shown, key=lambda each: shown[each].rank):
        more = max(0, min(spare, natural[title] - widths[title]))
        widths[title] += more
        spare -= more
    return widths


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * max(0, len(widths) - 1)


def show_deleted(ids: Iterator[str], *, as_json: bool) -> None:
    """Say of each thing that it is gone, once it is; as JSON one document about all of them."""
    gone = []
    for each in ids:
        gone.append(each)
        if not as_json:
            print(f"deleted {each}", flush=True)
    if as_json:
        print(json.dumps({"deleted": gone}, indent=2))


def size_text(size_bytes: int) -> str:
    """`1.2 GB`."""
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """`2026-01-31 23:59:59`, in the time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def console() -> Console:
    """Where results go. What is piped is as wide as it is."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WHOLE)


def _fields(value: "DataclassInstance | Mapping[str, Any]") -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else asdict(value)


def _text(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    text = "" if value is None else str(value)
    return Text(printable(" ".join(text.split())))


def _field_cell(name: str, value: Any) -> Text | str:
    if name.endswith("_time") and isinstance(value, float):
        return time_text(value)
    if name.endswith("size_bytes"):
        return f"{value:,} ({size_text(value)})"
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return Text(printable(", ".join(value)))
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) and "sha256" in item for item in value):
        return Text(printable("\n".join(f"{item['path']}  {size_text(item['size_bytes'])}" for item in value)))
    if isinstance(value, (dict, list, tuple)):
        import yaml

        plain = json.loads(json.dumps(_for_people(value)))
        return Text(printable(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip()))
    return Text(printable(str(_for_people(value))))


def _for_people(value: Any) -> Any:
    """Without the fields of mappings that are None, and numbers in six digits."""
    if isinstance(value, Mapping):
        return {name: _for_people(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_for_people(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
    return value
