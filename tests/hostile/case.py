"""What a hostile case is."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Case:
    """A file and what has to be said of it.

    The content is made when it is needed: some are large.
    """

    name: str
    file_name: str
    make: Callable[[], bytes | Iterator[bytes]]
    reason: str
    """What the message must say, as a regular expression."""
    field: str | None = None
    """The first violation's field; None when the file as a whole is refused, without one."""

    @property
    def group(self) -> str:
        """What sort of case it is."""
        return self.name.partition(":")[0]


GOOD: dict[str, Any] = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"
USER, ASSISTANT = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
CHAT: dict[str, Any] = {
    "prompt": [USER],
    "chosen": [ASSISTANT],
    "rejected": [ASSISTANT | {"content": "3"}],
}


def fixed(data: bytes) -> Callable[[], bytes]:
    """Gives the same bytes every time."""
    return lambda: data
