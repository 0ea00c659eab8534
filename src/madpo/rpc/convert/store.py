"""What a check of the object store says: store_service.proto."""

from madpo import types
from madpo.v1 import store_service_pb2 as store


def store_check_to_proto(said: types.StoreFinding | types.StoreCheckProgress) -> store.CheckStoreResponse:
    """All fields."""
    if isinstance(said, types.StoreCheckProgress):
        progress = store.StoreCheckProgress(objects=said.objects, size_bytes=said.size_bytes)
        return store.CheckStoreResponse(progress=progress)
    return store.CheckStoreResponse(finding=finding_to_proto(said))


def store_check_from_proto(message: store.CheckStoreResponse) -> types.StoreFinding | types.StoreCheckProgress:
    """Inverse of `store_check_to_proto`."""
    if message.HasField("progress"):
        return types.StoreCheckProgress(message.progress.objects, message.progress.size_bytes)
    return finding_from_proto(message.finding)


def finding_to_proto(found: types.StoreFinding) -> store.StoreFinding:
    """All fields."""
    return store.StoreFinding(key=found.key, verdict=found.verdict, detail=found.detail, repaired=found.repaired)


def finding_from_proto(found: store.StoreFinding) -> types.StoreFinding:
    """All fields."""
    return types.StoreFinding(found.key, found.verdict, found.detail, found.repaired)
