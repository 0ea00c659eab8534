"""Events of a job as they lie in its stream, and the cursors that name them."""

import re
from collections.abc import Mapping

from madpo.errors import InvalidArgumentError
from madpo.queue.records import event_from_json
from madpo.types import Job, JobEvent, StateChange

Position = tuple[int, int]
"""Of an event in its stream: time in milliseconds, and a number."""

_CURSOR = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_LARGEST = 2**64 - 1
"""Streams number their entries in 64 bits."""


def parse_cursor(cursor: str) -> Position:
    """The position that a cursor names; "" is before the first. Raises InvalidArgumentError."""
    match = _CURSOR.fullmatch(cursor or "0-0")
    if not match or max(map(int, match.groups())) > _LARGEST:
        raise InvalidArgumentError(f"cursor is not one this service gave: {cursor!r:.80}")
    return int(match[1]), int(match[2])


def format_cursor(position: Position) -> str:
    """Inverse of `parse_cursor`."""
    return f"{position[0]}-{position[1]}"


def read_event(cursor: str, fields: Mapping[str, str]) -> JobEvent:
    """An event from its entry in a stream."""
    create_time = parse_cursor(cursor)[0] / 1000
    return JobEvent(cursor, create_time, event_from_json(fields["type"], fields["data"]))


def final_event(job: Job, *, cursor: str) -> JobEvent:
    """The terminal change of a job whose stream no longer has it."""
    return JobEvent(cursor, job.finish_time or 0.0, StateChange(job.state, job.attempt, job.reason))
