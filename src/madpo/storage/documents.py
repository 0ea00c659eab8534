"""Small JSON objects in one canonical form, so that equal content is equal bytes.

A stored one is sealed: it says in which `format` its fields are, and carries the SHA-256 of all the rest. A field that
is added does not change the format, since readers pass over those they do not know; a format counts up when an older
reader would misunderstand. Then the reader goes out one version before the writer, so that one can go back by one.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from madpo.errors import CorruptObjectError, MadpoError, UnknownFormatError

_FORMAT, _DIGEST = "format", "sha256"


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


def seal(body: Mapping[str, Any], *, version: int | None = 1) -> bytes:
    """The bytes to store of a document.

    Args:
        body: Its fields.
        version: The format in which they are; None is format 1 where version 0.1.0 allows no field that says so.
    """
    marked = dict(body) if version is None else {**body, _FORMAT: version}
    return encode({**marked, _DIGEST: hashlib.sha256(encode(marked)).hexdigest()})


def unseal(data: bytes, *, key: str, newest: int = 1, sealed_always: bool = False) -> dict[str, Any]:
    """Inverse of `seal`; also reads what version 0.1.0 wrote, without format and digest.

    Args:
        data: The stored bytes.
        key: Where they were stored, for the messages.
        newest: The highest format that the caller understands.
        sealed_always: Whether version 0.1.0 wrote the digest as well.

    Raises:
        CorruptObjectError: The bytes were changed.
        UnknownFormatError: They were written by a newer version.
    """
    body = decode(data, key=key)
    if _DIGEST not in body and _FORMAT not in body and not sealed_always:
        return body
    digest = body.pop(_DIGEST, None)
    try:
        is_intact = encode({**body, _DIGEST: digest}) == data and hashlib.sha256(encode(body)).hexdigest() == digest
    except ValueError:  # NaN
        is_intact = False
    if not is_intact:
        raise CorruptObjectError(f"{key} does not match its own digest")
    version = body.pop(_FORMAT, 1)
    if not isinstance(version, int) or version > newest:
        raise UnknownFormatError(
            f"{key} has format {version}, this version of madpo reads formats up to {newest}: upgrade madpo"
        )
    return body


def is_sealed(data: bytes) -> bool:
    """Whether a document carries a digest; those of version 0.1.0 that carry none cannot be verified."""
    return _DIGEST in decode(data, key="")


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Make errors that name the document of what goes wrong with its fields.

    Raises:
        CorruptObjectError: A field is missing or of another type.
        UnknownFormatError: One has a value that this version does not know, such as another kind of job.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptObjectError(f"{key} lacks fields, or has others than it should: {error}") from error
    except ValueError as error:
        if isinstance(error, MadpoError):
            raise
        raise UnknownFormatError(f"{key}: {error}; was it written by a newer version of madpo? upgrade") from error


def known_fields(kind: type, body: Mapping[str, Any]) -> dict[str, Any]:
    """Of a document's fields those that a dataclass has; a newer version may have added others."""
    return {field.name: body[field.name] for field in fields(kind) if field.name in body}
