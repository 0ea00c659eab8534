"""Lists in OpenAI's shape: pages that begin behind an id."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Query

from madpo.errors import InvalidArgumentError

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100)]
"""How many of a list at most."""
After = Annotated[str | None, Query(max_length=200)]
"""The id of the last of the page before."""


def page(
    items: Iterable[T],
    shape: Callable[[T], dict[str, Any]],
    *,
    id_of: Callable[[T], str],
    after: str | None,
    limit: int,
) -> dict[str, Any]:
    """One page of items.

    Args:
        items: In order; no more are taken than the page needs.
        shape: One of them as JSON, with its `id`.
        id_of: What `after` names.
        after: The page begins behind this one.
        limit: How many at most.

    Raises:
        InvalidArgumentError: There is no such one.
    """
    remaining = iter(items)
    if after is not None and not any(id_of(item) == after for item in remaining):
        raise InvalidArgumentError.in_field("after", f"there is no {after} in this list")
    data = [shape(item) for item in islice(remaining, limit)]
    has_more = next(remaining, None) is not None
    ids = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": has_more, **ids}
