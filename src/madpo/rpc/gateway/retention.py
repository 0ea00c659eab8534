"""Retention of a gateway."""

from collections.abc import AsyncGenerator
from functools import cached_property

from madpo import types
from madpo.rpc import convert
from madpo.rpc.gateway.calls import GatewayCalls
from madpo.v1 import retention_service_pb2 as retention
from madpo.v1.retention_service_pb2_grpc import RetentionServiceStub


class RetentionCalls(GatewayCalls):
    """The calls of `RetentionService`."""

    @cached_property
    def _retention(self) -> RetentionServiceStub:
        return RetentionServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def apply_retention(self, *, dry_run: bool) -> AsyncGenerator[types.Removal]:
        """What is removed, as it goes. Raises PermissionDeniedError."""
        call = self._retention.ApplyRetention(retention.ApplyRetentionRequest(dry_run=dry_run), metadata=self.metadata)
        async for message in self.received(call, timeout_s=self.commit_timeout_s):
            yield convert.removal_from_proto(message)

    async def pin(self, thing_id: str) -> None:
        """Raises NotFoundError."""
        await self.call(self._retention.Pin, retention.PinRequest(thing_id=thing_id))

    async def unpin(self, thing_id: str) -> None:
        """One that is not pinned stays so."""
        await self.call(self._retention.Unpin, retention.UnpinRequest(thing_id=thing_id))

    async def list_pins(self) -> list[str]:
        """Ids of all that is pinned."""
        response = await self.call(self._retention.ListPins, retention.ListPinsRequest())
        return list(response.thing_ids)
