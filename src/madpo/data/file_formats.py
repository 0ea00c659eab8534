"""Names of the formats that files of rows come in, and what the ending of a file's name hints at. Imports no reader."""

from pathlib import PurePath
from typing import Literal, get_args

from madpo.errors import FieldViolation, InvalidArgumentError

FileFormat = Literal["jsonl", "json", "parquet", "arrow", "csv"]

FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)

ENDINGS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
}
COMPRESSED_ENDINGS = (".gz", ".zst", ".zstd")


def parse_format(name: str) -> FileFormat | None:
    """The format of this name; None for "", which lets the content say.

    Raises:
        InvalidArgumentError: There is no such format.
    """
    if not name:
        return None
    for known in FORMATS:
        if name == known:
            return known
    message = f"must be one of {', '.join(FORMATS)}, got {name!r:.60}"
    raise InvalidArgumentError(f"format {message}", [FieldViolation("header.format", message)])


def format_of_name(name: str) -> FileFormat | None:
    """What the ending of a name says, that of compression aside."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED_ENDINGS:
        path = path.with_suffix("")
    return ENDINGS.get(path.suffix)
