"""What retention removes: retention_service.proto."""

from madpo import types
from madpo.rpc.convert.times import duration, span_s
from madpo.v1 import retention_service_pb2 as retention


def removal_to_proto(removal: types.Removal) -> retention.ApplyRetentionResponse:
    """All fields."""
    return retention.ApplyRetentionResponse(
        kind=removal.kind,
        thing_id=removal.thing_id,
        display_name=removal.display_name,
        size_bytes=removal.size_bytes,
        age=duration(removal.age_s),
    )


def removal_from_proto(removal: retention.ApplyRetentionResponse) -> types.Removal:
    """All fields."""
    return types.Removal(
        kind=removal.kind,
        thing_id=removal.thing_id,
        size_bytes=removal.size_bytes,
        age_s=span_s(removal.age),
        display_name=removal.display_name,
    )
