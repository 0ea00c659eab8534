"""Arguments that had another name in the version before: they are taken for one version, and said so in the log."""

import logging
from typing import Any

from madpo.errors import InvalidArgumentError

logger = logging.getLogger(__name__)


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """The value of an argument, given under either name. Raises InvalidArgumentError when it is given under both."""
    if old_value is None:
        return new_value
    if new_value is not None:
        raise InvalidArgumentError(f"{old} is the old name of {new}: give {new} alone")
    warn_renamed(old, new)
    return old_value


def warn_renamed(old: str, new: str) -> None:
    """Say in the log that a name has changed."""
    logger.warning("%s is deprecated and goes with the next version: write %s", old, new)
