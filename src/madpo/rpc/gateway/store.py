"""The object store behind a gateway."""

from collections.abc import AsyncGenerator
from functools import cached_property

from madpo import types
from madpo.rpc import convert
from madpo.rpc.gateway.calls import GatewayCalls
from madpo.v1 import store_service_pb2 as store
from madpo.v1.store_service_pb2_grpc import StoreServiceStub


class StoreCalls(GatewayCalls):
    """The calls of `StoreService`."""

    @cached_property
    def _store(self) -> StoreServiceStub:
        return StoreServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def check_store(self, *, repair: bool) -> AsyncGenerator[types.StoreFinding | types.StoreCheckProgress]:
        """What is wrong, and how far the check is. Raises PermissionDeniedError."""
        call = self._store.CheckStore(store.CheckStoreRequest(repair=repair), metadata=self.metadata)
        async for message in self.received(call, timeout_s=self.commit_timeout_s):
            yield convert.store_check_from_proto(message)
