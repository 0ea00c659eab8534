"""What stands below a prefix: pages of bundles, without those that cannot be read, and files of no bundle."""

import logging
from collections.abc import Callable
from typing import TypeVar

from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectInfo, ObjectStore
from madpo.storage import bundle, keys
from madpo.types import StoreFinding

logger = logging.getLogger(__name__)

T = TypeVar("T")


def list_newest(store: ObjectStore, root: str, *, page_size: int, page_token: str) -> tuple[list[str], str]:
    """One page of the names of the bundles directly below a prefix, newest first.

    Args:
        store: Where.
        root: The prefix.
        page_size: Most names to return.
        page_token: The token that came with the page before; "" for the first.

    Returns:
        The names and the token of the next page, "" at the end.

    Raises:
        InvalidArgumentError: `page_size` is below 1, or `page_token` is none of ours.
    """
    if page_size < 1:
        raise InvalidArgumentError(f"page_size must be at least 1, got {page_size}")
    ages = sorted((-info.modified_time, name) for name, info in bundle.list_bundles(store, root))
    if page_token:
        age, _, name = page_token.partition("/")
        try:
            last = (float(age), name)
        except ValueError as error:
            raise InvalidArgumentError(f"page_token {page_token!r} did not come with a page") from error
        ages = [position for position in ages if position > last]
    page = ages[:page_size]
    next_token = f"{page[-1][0]!r}/{page[-1][1]}" if len(ages) > page_size else ""
    return [name for _, name in page], next_token


def list_readable(
    store: ObjectStore,
    root: str,
    read: Callable[[str], T],
    *,
    page_size: int,
    page_token: str,
    on_unreadable: Callable[[StoreFinding], object],
) -> tuple[list[T], str]:
    """One page of what is below a prefix, the one stored last first; what cannot be read is logged and left out.

    Args:
        store: Where.
        root: The prefix.
        read: Describes one by its name.
        page_size: See `list_newest`, as `page_token`.
        page_token: The token that came with the page before; "" for the first.
        on_unreadable: Told of each that is left out, damaged or of a newer version.

    Returns:
        At most `page_size` of them, and the token of the next page, "" at the end.
    """
    names, token = list_newest(store, root, page_size=page_size, page_token=page_token)
    found = []
    for name in names:
        try:
            found.append(read(name))
        except NotFoundError:
            pass  # removed meanwhile
        except (CorruptObjectError, UnknownFormatError) as error:
            verdict = "damaged" if isinstance(error, CorruptObjectError) else "newer"
            logger.error("left out of a list", extra={"what": f"{root}/{name}", "error": str(error)})
            on_unreadable(StoreFinding(f"{root}/{name}/{keys.MANIFEST}", verdict, str(error)))
    return found, token


def pass_over(finding: StoreFinding) -> None:
    """For who needs no more than the others."""


def list_unfinished(store: ObjectStore, root: str) -> dict[str, list[ObjectInfo]]:
    """By key prefix of their bundle, the files below a prefix that belong to no manifest: being stored, or given up.

    Without what a job keeps from one attempt to the next before it is whole.
    """
    found: dict[str, list[ObjectInfo]] = {}
    finished = set()
    for info in store.list(f"{root}/"):
        prefix = keys.bundle_of(info.key)
        if prefix is None or (keys.is_growing(prefix) and root == keys.JOBS):
            continue
        found.setdefault(prefix, []).append(info)
        if info.key == f"{prefix}/{keys.MANIFEST}":
            finished.add(prefix)
    return {prefix: infos for prefix, infos in found.items() if prefix not in finished}
