"""StoreService: what is wrong in the object store."""

from collections.abc import AsyncIterator
from typing import Any

from madpo.ports import ObjectStore
from madpo.rpc import convert
from madpo.storage.check import check_store
from madpo.v1 import store_service_pb2 as pb
from madpo.v1.store_service_pb2_grpc import StoreServiceServicer
from madpo_gateway.spool import run_blocking


class StoreServicer(StoreServiceServicer):
    """Serves the check of one object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def CheckStore(self, request: pb.CheckStoreRequest, context: Any) -> AsyncIterator[pb.CheckStoreResponse]:  # noqa: N802
        """Read everything, as fast as the caller listens."""
        check = check_store(self._store, repair=request.repair)
        while (said := await run_blocking(next, check, None)) is not None:
            yield convert.store_check_to_proto(said)
