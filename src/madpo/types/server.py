"""What any server says of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a call to a server tells about it."""

    version: str
    """"" when it does not say."""
    clock_ahead_s: float | None
    """How far its clock is ahead of ours, give or take half of the round trip; None when it does not say."""
    round_trip_s: float
