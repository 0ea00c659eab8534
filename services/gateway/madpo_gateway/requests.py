"""Checks of single request fields: ids before they become keys, labels, page sizes."""

import re
from collections.abc import Mapping

from madpo.errors import InvalidArgumentError

MAX_PAGE_SIZE = 200
DEFAULT_PAGE_SIZE = 50
MAX_DISPLAY_NAME = 200
MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE = 16, 64, 512
"""Entries, and characters of each; as of OpenAI's API."""


def violation(field: str, description: str) -> InvalidArgumentError:
    """The error for one wrong field."""
    return InvalidArgumentError.in_field(field, description)


def require_match(value: str, pattern: str, *, field: str) -> str:
    """The value, if all of it matches.

    Raises:
        InvalidArgumentError: Names field, pattern and value.
    """
    # `$` in a pattern also matches before a trailing newline; a full match does not.
    if re.fullmatch(pattern, value) is None:
        raise violation(field, f"must match {pattern}, got {value!r:.60}")
    return value


def require_display_name(value: str, *, field: str) -> str:
    """The label, if it is short and on one line. Raises InvalidArgumentError."""
    if len(value) > MAX_DISPLAY_NAME or not value.isprintable():
        raise violation(field, f"must be at most {MAX_DISPLAY_NAME} printable characters, got {value!r:.60}")
    return value


def require_metadata(notes: Mapping[str, str]) -> dict[str, str]:
    """The notes, if they are few and short. Raises InvalidArgumentError."""
    if len(notes) > MAX_METADATA:
        raise violation("metadata", f"must have at most {MAX_METADATA} entries, got {len(notes)}")
    for name, value in notes.items():
        if not 0 < len(name) <= MAX_METADATA_NAME or len(value) > MAX_METADATA_VALUE:
            raise violation(
                "metadata",
                f"must have names of 1 to {MAX_METADATA_NAME} characters and values of at most {MAX_METADATA_VALUE}, "
                f"got {name!r:.60} of {len(value)}",
            )
    return dict(notes)


def is_plain_path(name: str) -> bool:
    """Whether a name is of a file, perhaps below folders, and leads nowhere else."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def page_size(value: int) -> int:
    """Items per page: 0 takes the default, more than the most takes the most. Raises InvalidArgumentError below 0."""
    if value < 0:
        raise violation("page_size", f"must not be negative, got {value}")
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
