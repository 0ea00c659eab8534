"""Times and sizes as people write them on a command line: `30d`, `2026-01-31`, `20GB`."""

import re
import time
from datetime import datetime

import typer

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_span(text: str) -> float:
    """A span in seconds. Raises BadParameter."""
    span_s = _span_s(text)
    if span_s is None:
        raise typer.BadParameter(f"is a span such as 90m, 2h, 3d or 1w, got {text!r}")
    return span_s


def parse_since(text: str | None) -> float | None:
    """A point in time as seconds since the epoch: `2h` ago, or a date. Raises BadParameter."""
    if text is None:
        return None
    if (span_s := _span_s(text)) is not None:
        return time.time() - span_s
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise typer.BadParameter(
            f"is a span such as 90m, 2h, 3d or 1w, or a time such as 2026-01-31 or 2026-01-31T12:00, got {text!r}",
            param_hint="--since",
        ) from None


def parse_size(text: str) -> int:
    """A size in bytes, at least one. Raises BadParameter."""
    match = _SIZE.fullmatch(text)
    size = round(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]) if match else 0
    if size < 1:
        raise typer.BadParameter(f"is a size such as 500MB, 20GB or 4GiB, got {text!r}")
    return size


def _span_s(text: str) -> float | None:
    match = _SPAN.fullmatch(text)
    return match and float(match[1]) * _UNITS_S[match[2]]
