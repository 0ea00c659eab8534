"""Small JSON objects in one canonical form, so that equal content is equal bytes."""

import json
from typing import Any

from madpo.errors import CorruptObjectError


def encode(value: Any) -> bytes:
    """Canonical JSON: sorted names, no spaces, ASCII. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes, *, key: str) -> dict[str, Any]:
    """Inverse of `encode`.

    Args:
        data: The stored bytes.
        key: Where they were stored, for the message.

    Raises:
        CorruptObjectError: The bytes are not a JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptObjectError(f"{key} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptObjectError(f"{key} is not a JSON object")
    return value
