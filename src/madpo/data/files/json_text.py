"""One JSON value from bytes, strictly: UTF-8, no key twice, no NaN, bounded in depth and size."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from madpo.data.files.limits import ReadLimits
from madpo.data.raw_row import refuse
from madpo.errors import InvalidPairError


def parse_json(text: bytes, row: int, limits: ReadLimits, *, field: str = "") -> Any:
    """The value, which need not be an object.

    Args:
        text: One JSON value; white space around it is fine.
        row: Its row number, for the error.
        limits: Depth, columns and field size are checked.
        field: The column whose cell holds the text; empty when the text is the whole row.

    Raises:
        InvalidPairError: Names the row and what is wrong.
    """

    def refuse_constant(name: str) -> NoReturn:
        refuse(row, field, f"holds {name}, which is not JSON: use null or a number")

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            refuse(row, field, f"has the key {repeated!r:.60} twice")
        return value

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse_constant)
    except InvalidPairError:
        raise
    except UnicodeDecodeError as error:
        refuse(row, field, f"is not UTF-8 at byte {error.start}: save the file as UTF-8")
    except json.JSONDecodeError as error:
        refuse(row, field, f"is not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        _refuse_depth(row, field, limits)
    except ValueError:
        refuse(row, field, "holds a number with too many digits")
    if _is_deeper(value, limits.max_depth):
        _refuse_depth(row, field, limits)
    if not field and isinstance(value, dict):
        _check_columns(value, len(text), row, limits)
    return value


def _check_columns(value: dict[str, Any], size_bytes: int, row: int, limits: ReadLimits) -> None:
    if len(value) > limits.max_columns:
        refuse(row, "", f"has {len(value)} fields; at most {limits.max_columns} are read (max_columns)")
    if size_bytes > limits.max_field_bytes:
        for name, item in value.items():
            if text_bytes(item) > limits.max_field_bytes:
                refuse(row, f"{name:.60}", too_large(limits.max_field_bytes, "max_field_bytes"))


def too_large(limit_bytes: int, setting: str) -> str:
    """What is said of a row or field past its limit."""
    return f"is larger than {limit_bytes} bytes ({setting}): shorten or drop it"


def text_bytes(value: Any) -> int:
    """Bytes of all text in a JSON value."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    if isinstance(value, dict):
        return sum(map(text_bytes, value)) + sum(map(text_bytes, value.values()))
    return sum(map(text_bytes, value)) if isinstance(value, list) else 0


def _refuse_depth(row: int, field: str, limits: ReadLimits) -> NoReturn:
    refuse(row, field, f"is nested deeper than {limits.max_depth} (max_depth): flatten it")


def _is_deeper(value: Any, limit: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return limit == 0 or any(_is_deeper(item, limit - 1) for item in value)
