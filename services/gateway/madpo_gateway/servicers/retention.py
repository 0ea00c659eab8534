"""RetentionService: what is kept, and what may go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from madpo.errors import NotFoundError
from madpo.jobs.base import DATASET_ID_PATTERN, JOB_ID_PATTERN, MODEL_ID_PATTERN
from madpo.ports import JobQueue, ObjectStore
from madpo.rpc import convert
from madpo.rpc.access import current_caller
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.pins import pin, pinned, unpin
from madpo.v1 import retention_service_pb2 as pb
from madpo.v1.retention_service_pb2_grpc import RetentionServiceServicer
from madpo_gateway.reconcile import find_job
from madpo_gateway.requests import require_match
from madpo_gateway.retention import Retention

_THING = "|".join(f"({pattern})" for pattern in (JOB_ID_PATTERN, MODEL_ID_PATTERN, DATASET_ID_PATTERN))


class RetentionServicer(RetentionServiceServicer):
    """Serves the retention of one object store and its queue."""

    def __init__(
        self,
        retention: Retention,
        *,
        store: ObjectStore,
        datasets: DatasetStore,
        models: ModelStore,
        queue: JobQueue,
    ) -> None:
        self._retention, self._store, self._datasets, self._models = retention, store, datasets, models
        self._queue = queue

    async def ApplyRetention(  # noqa: N802
        self, request: pb.ApplyRetentionRequest, context: Any
    ) -> AsyncIterator[pb.ApplyRetentionResponse]:
        """Remove what the rules say, or only say it."""
        async for removal in self._retention.apply(dry_run=request.dry_run, caller=current_caller()):
            yield convert.removal_to_proto(removal)

    async def Pin(self, request: pb.PinRequest, context: Any) -> pb.PinResponse:  # noqa: N802
        """Keep a thing, whatever the rules say; it must be there."""
        thing_id = require_match(request.thing_id, _THING, field="thing_id")
        was_pinned = thing_id in await asyncio.to_thread(pinned, self._store)
        # Pinned before it is looked up: whoever removes it at this moment finds the pin, or it is missing here.
        await asyncio.to_thread(pin, self._store, thing_id, caller=current_caller().name)
        try:
            await self._require_there(thing_id)
        except NotFoundError:
            if not was_pinned:
                await asyncio.to_thread(unpin, self._store, thing_id)
            raise
        return pb.PinResponse()

    async def Unpin(self, request: pb.UnpinRequest, context: Any) -> pb.UnpinResponse:  # noqa: N802
        """Leave it to the rules again; it may be gone."""
        await asyncio.to_thread(unpin, self._store, require_match(request.thing_id, _THING, field="thing_id"))
        return pb.UnpinResponse()

    async def ListPins(self, request: pb.ListPinsRequest, context: Any) -> pb.ListPinsResponse:  # noqa: N802
        """All that is pinned."""
        return pb.ListPinsResponse(thing_ids=sorted(await asyncio.to_thread(pinned, self._store)))

    async def _require_there(self, thing_id: str) -> None:
        if thing_id.startswith("job-"):
            await find_job(thing_id, store=self._store, queue=self._queue)
        else:
            shelf = self._models if thing_id.startswith("model-") else self._datasets
            await asyncio.to_thread(shelf.get, thing_id)
