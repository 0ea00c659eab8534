"""What can be uploaded as a dataset: a file, several, a directory of the `datasets` library, or rows in memory."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from madpo.data.columns import ColumnMap
from madpo.data.file_formats import COMPRESSED_ENDINGS, format_of_name, parse_format
from madpo.data.files.json_text import parse_json
from madpo.data.files.limits import DEFAULT_LIMITS
from madpo.data.forms.registry import KNOWN_COLUMNS
from madpo.errors import InvalidArgumentError
from madpo.spelling import did_you_mean
from madpo_client.extras import needs_extra
from madpo_client.frames import is_absent, is_nan, plain, table_rows

if TYPE_CHECKING:
    from madpo.data.files.reading import FileRows

Source = Path | str | Iterable[Path | str] | Iterable[Mapping[str, Any]] | Any
"""A path, paths, or rows: an iterable of mappings, such as a `datasets.Dataset`, or a table (pandas, polars, Arrow)."""

_NOTES = ("dataset_info.json", "dataset_infos.json")
"""What `datasets` puts beside data files."""
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")


@contextmanager
def open_source(
    source: Source, *, split: str | None = None, columns: Mapping[str, str] | None = None
) -> Iterator[list[Path]]:
    """The files to send, in the order of their rows. Rows in memory are in a temporary file until the end.

    Args:
        source: What to send.
        split: Of a mapping of splits, such as a `datasets.DatasetDict`, the one that is meant.
        columns: Our names of columns to the source's, as the gateway gets them: NaN is refused in what is read.

    Raises:
        InvalidArgumentError: A directory is of no shape known here, there is no such split, `columns` names what is not
            read, or a row is no JSON object; names it, and the column.
    """
    found = _paths_or_rows(source, split)
    if isinstance(found, list):
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="madpo-") as directory:
        path = Path(directory) / "rows.jsonl"
        names = ColumnMap(columns or {}, known=KNOWN_COLUMNS)
        with path.open("w", encoding="ascii") as file:
            for number, row in enumerate(found, start=1):
                file.write(_line(row, number, names))
        yield [path]


class MemoryRows:
    """Rows in memory as a file would hold them, with their numbers from 1, one at a time as they are asked for."""

    def __init__(self, rows: Iterable[Any], columns: Mapping[str, str]) -> None:
        self._rows = enumerate(rows, start=1)
        self._names = ColumnMap(columns, known=KNOWN_COLUMNS)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Any]:
        number, row = next(self._rows)
        return number, parse_json(_line(row, number, self._names).encode(), number, DEFAULT_LIMITS)

    def close(self) -> None:
        """There is nothing to close."""

    def explain(self, error: InvalidArgumentError) -> InvalidArgumentError:
        """There is one source: its rows are named by their numbers."""
        return error


def open_rows(
    source: Source,
    *,
    split: str | None = None,
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> "MemoryRows | FileRows":
    """The rows of a source, read here: as the gateway reads them, in bounded memory. Close them.

    Raises:
        InvalidArgumentError: As `open_source`; there is no such file or format; or, while iterating, as `FileRows`.
        MissingExtraError: Files cannot be read without the packages of the extra `data`.
    """
    found = _paths_or_rows(source, split)
    if not isinstance(found, list):
        return MemoryRows(found, columns or {})
    if missing := [path for path in found if not path.is_file()]:
        raise InvalidArgumentError(f"{missing[0]} is not a file")
    with needs_extra("data", "reading a file of rows"):
        from madpo.data.files.reading import DataFile, FileRows
    return FileRows([DataFile(path, path.name, parse_format(format or "")) for path in found])


def _paths_or_rows(source: Source, split: str | None) -> list[Path] | Iterator[Any]:
    source = _chosen(source, split)
    if isinstance(source, (Path, str)):
        path = Path(source).expanduser()
        return directory_files(path) if path.is_dir() else [path]
    rows = table_rows(source)
    if rows is None and not isinstance(source, Iterable):
        raise InvalidArgumentError(
            f"{type(source).__name__} is no source of rows: give a path, paths, an iterable of mappings or a table"
        )
    items = iter(source if rows is None else rows)
    first = next(items, None)
    if isinstance(first, (Path, str)):
        return [Path(path).expanduser() for path in _paths(first, items)]
    return iter(()) if first is None else chain([first], items)


def _chosen(source: Source, split: str | None) -> Source:
    if not isinstance(source, Mapping):
        if split is not None:
            raise InvalidArgumentError(f"split={split!r} is for a mapping of splits, got {type(source).__name__}")
        return source
    splits = ", ".join(map(repr, source))
    if split is None:
        raise InvalidArgumentError(
            f"a mapping is not rows; where it holds the splits {splits:.200}, give one of them, or split= with its name"
        )
    if split not in source:
        raise InvalidArgumentError(f"there is no split {split!r}{did_you_mean(split, map(str, source))}: {splits:.200}")
    return source[split]


def source_name(source: Source) -> str:
    """A label for a source that is one path, "" for any other."""
    if not isinstance(source, (Path, str)):
        return ""
    path = Path(source)
    return path.with_suffix("").stem if path.suffix in COMPRESSED_ENDINGS else path.stem


def directory_files(directory: Path) -> list[Path]:
    """The data files of a directory: as `save_to_disk` lists them, else all of its one format, by name.

    Raises:
        InvalidArgumentError: It holds splits, several formats or none.
    """
    if (directory / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in directory.iterdir() if path.is_dir())
        raise InvalidArgumentError(f"{directory} holds the splits {', '.join(splits)}; give the directory of one")
    state = directory / "state.json"
    if state.is_file():
        return _saved_files(state)
    files = sorted(path for path in directory.iterdir() if path.is_file() and _is_data(path.name))
    formats = {format_of_name(path.name) for path in files}
    if not files or len(formats) > 1:
        found = ", ".join(path.name for path in files[:10]) or "none"
        raise InvalidArgumentError(f"{directory} must hold data files of one format, found {found}; give the files")
    named = sorted({split for path in files if (split := _split(path.name))})
    if len(named) > 1:
        raise InvalidArgumentError(f"{directory} holds files of the splits {', '.join(named)}; give those of one")
    return files


def _saved_files(state: Path) -> list[Path]:
    try:
        described = json.loads(state.read_text(encoding="utf-8"))
        if described.get("_indices_files"):
            raise InvalidArgumentError(
                f"{state.parent} holds a view of its rows (select, shuffle or filter); call flatten_indices() before "
                "save_to_disk"
            )
        names = [file["filename"] for file in described["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{state} is not what save_to_disk writes: {error}") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InvalidArgumentError(f"{state} must name data files beside it, found {names!r:.200}")
    return [state.parent / name for name in names]


def _is_data(name: str) -> bool:
    return format_of_name(name) is not None and name not in _NOTES and not name.startswith(".")


def _split(name: str) -> str:
    stem = name.lower().replace("_", "-").replace(".", "-").partition("-")[0]
    return stem if stem in _SPLITS else ""


def _paths(first: Path | str, others: Iterable[Any]) -> Iterator[Path | str]:
    yield first
    for path in others:
        if not isinstance(path, (Path, str)):
            raise InvalidArgumentError(f"files and rows are mixed: after {first} comes {type(path).__name__}")
        yield path


def _line(row: Any, number: int, columns: ColumnMap) -> str:
    if not isinstance(row, Mapping):
        raise _no_object(number, f"it is {type(row).__name__}")
    cells = {name: _cell(name, value, columns) for name, value in row.items()}
    try:
        return _json(cells) + "\n"
    except (TypeError, ValueError) as error:
        reasons = (_why_not(name, value) for name, value in cells.items())
        raise _no_object(number, next(filter(None, reasons), str(error))) from error


def _cell(name: str, value: Any, columns: ColumnMap) -> Any:
    """The value; None where there is none, and for a NaN that nobody reads."""
    return None if is_absent(value) or (is_nan(value) and not columns.reads(name)) else value


def _why_not(name: str, value: Any) -> str:
    """Why a cell cannot be sent; "" where it can."""
    try:
        _json(value)
    except TypeError as error:
        return f"{name} holds {error}"
    except ValueError:
        return f"{name} holds {value!r:.60}"
    return ""


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=plain)


def _no_object(number: int, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"row {number} is no JSON object: {reason}; give text, numbers, lists and mappings of them"
    )


def size_bytes_of(path: Path) -> int:
    """Size of a file; 0 of anything else."""
    return path.stat().st_size if path.is_file() else 0
