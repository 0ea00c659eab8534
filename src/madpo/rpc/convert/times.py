"""Times and spans on the wire."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since the epoch; None stays unset."""
    return None if seconds is None else Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def seconds(time: Timestamp) -> float:
    """Inverse of `timestamp`."""
    return time.seconds + time.nanos / 1e9


def duration(span_s: float) -> Duration:
    """A span in seconds."""
    return Duration(seconds=int(span_s), nanos=int(span_s % 1 * 1e9))


def span_s(span: Duration) -> float:
    """Inverse of `duration`."""
    return span.seconds + span.nanos / 1e9
