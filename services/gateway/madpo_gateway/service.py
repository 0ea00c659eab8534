"""The gateway: its services over one object store and one queue, and the housekeeping of the queue."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator

import grpc
from prometheus_client import CollectorRegistry

from madpo.background import EssentialTask, repeat
from madpo.queue.metrics import QueueCollector
from madpo.queue.queue import open_queue
from madpo.queue.reaper import Reaper
from madpo.rpc.access import current_caller
from madpo.rpc.reward_client import RewardClient
from madpo.scoring.connection import connect_scorer
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.storage.recovery import Recovery
from madpo.v1 import (
    access_service_pb2,
    dataset_service_pb2,
    job_service_pb2,
    model_service_pb2,
    retention_service_pb2,
    scoring_service_pb2,
    store_service_pb2,
)
from madpo.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from madpo.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from madpo.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from madpo.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from madpo.v1.retention_service_pb2_grpc import add_RetentionServiceServicer_to_server
from madpo.v1.scoring_service_pb2_grpc import add_ScoringServiceServicer_to_server
from madpo.v1.store_service_pb2_grpc import add_StoreServiceServicer_to_server
from madpo_gateway.access import GatewayAccess
from madpo_gateway.checks.references import Shelves
from madpo_gateway.deletion import BrokenOffDeletions, Deletion
from madpo_gateway.imports import HubImports
from madpo_gateway.metrics import GatewayMetrics
from madpo_gateway.reconcile import Reconciler, reap
from madpo_gateway.retention import Retention
from madpo_gateway.servicers.access import AccessServicer
from madpo_gateway.servicers.datasets import DatasetServicer
from madpo_gateway.servicers.jobs import JobServicer
from madpo_gateway.servicers.models import ModelServicer
from madpo_gateway.servicers.retention import RetentionServicer
from madpo_gateway.servicers.scoring import ScoringServicer
from madpo_gateway.servicers.store import StoreServicer
from madpo_gateway.settings import GatewaySettings
from madpo_gateway.turns import TurnsBySize
from madpo_gateway.uploads import Uploads

logger = logging.getLogger(__name__)

_CHECKED_AT_ONCE = 2
"""Rows are checked in Python: more threads of it would only keep calls waiting."""
_MOST_WAITING = 500
_LARGE_BYTES = 64 << 20
"""Files of rows that take minutes to check."""
_SCORING_TIMEOUT_S, _SCORER_OUTAGE_S = 300.0, 10.0
"""A slow model may take minutes for a request; whoever waits is told soon where nobody answers at all."""


CONTRACTS = (
    dataset_service_pb2,
    model_service_pb2,
    job_service_pb2,
    access_service_pb2,
    retention_service_pb2,
    store_service_pb2,
    scoring_service_pb2,
)


class GatewayService:
    """Implements `madpo.rpc.server.Service`.

    Raises:
        UnavailableError: The object store does not answer.
    """

    def __init__(self, settings: GatewaySettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._store = open_store(settings)
        self._queue = open_queue(settings)
        self._datasets = DatasetStore(self._store)
        self._models = ModelStore(self._store, settings.scratch)
        self._registry, self._metrics = registry, GatewayMetrics(registry)
        self._checking = TurnsBySize(
            "checks of rows", at_once=_CHECKED_AT_ONCE, waiting=_MOST_WAITING, large_bytes=_LARGE_BYTES
        )
        self.access = GatewayAccess(
            self._store,
            operator_token=settings.token.get_secret_value(),
            failures=self._metrics.audit_failures,
        )
        self._imports = HubImports(
            at_once=settings.max_imports,
            timeout_s=settings.import_timeout_s,
            take_bytes=lambda count: self.access.take_bytes(current_caller(), count),
        )
        self._uploads = Uploads(
            settings.uploads,
            settings.unfinished_uploads,
            limit_bytes=settings.max_upload_bytes,
            checking=self._checking,
            received=self._metrics.upload_bytes.labels("dataset"),
        )
        self._reconciler = Reconciler(store=self._store, queue=self._queue, count=self._metrics.restored.inc)
        self._deletion = Deletion(
            store=self._store,
            datasets=self._datasets,
            models=self._models,
            queue=self._queue,
            reconciler=self._reconciler,
        )
        self._retention = Retention(
            settings.retention,
            store=self._store,
            datasets=self._datasets,
            models=self._models,
            queue=self._queue,
            reconciler=self._reconciler,
            deletion=self._deletion,
            note=self.access.note,
        )
        self._recovery = Recovery(self._store)
        self._broken_off = BrokenOffDeletions(store=self._store, queue=self._queue)
        self._scorer: RewardClient | None = None
        self._collector: QueueCollector | None = None
        self._tasks: list[EssentialTask] = []
        self._stopping = asyncio.Event()
        self._reaper = Reaper(self._queue, lease_s=settings.lease_s)

    def add_to_server(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Register the services."""
        shelves = Shelves(self._store, self._datasets, self._models, self._queue)
        datasets = DatasetServicer(
            self._settings,
            datasets=self._datasets,
            uploads=self._uploads,
            checking=self._checking,
            imports=self._imports,
            deletion=self._deletion,
            metrics=self._metrics,
        )
        models = ModelServicer(
            self._settings,
            store=self._store,
            models=self._models,
            queue=self._queue,
            imports=self._imports,
            deletion=self._deletion,
            metrics=self._metrics,
        )
        jobs = JobServicer(
            self._settings,
            store=self._store,
            queue=self._queue,
            shelves=shelves,
            access=self.access,
            deletion=self._deletion,
            metrics=self._metrics,
        )
        add_DatasetServiceServicer_to_server(datasets, server)  # type: ignore[no-untyped-call]
        add_ModelServiceServicer_to_server(models, server)  # type: ignore[no-untyped-call]
        add_JobServiceServicer_to_server(jobs, server)  # type: ignore[no-untyped-call]
        add_AccessServiceServicer_to_server(  # type: ignore[no-untyped-call]
            AccessServicer(store=self._store, access=self.access), server
        )
        retention = RetentionServicer(
            self._retention, store=self._store, datasets=self._datasets, models=self._models, queue=self._queue
        )
        add_RetentionServiceServicer_to_server(retention, server)  # type: ignore[no-untyped-call]
        add_StoreServiceServicer_to_server(StoreServicer(self._store), server)  # type: ignore[no-untyped-call]
        if self._settings.reward_target is not None:
            self._scorer = connect_scorer(
                self._settings,
                requests_in_flight=self._settings.scoring_requests,
                timeout_s=_SCORING_TIMEOUT_S,
                outage_s=_SCORER_OUTAGE_S,
            )
        scoring = ScoringServicer(self._settings, scorer=self._scorer, shelves=shelves, metrics=self._metrics)
        add_ScoringServiceServicer_to_server(scoring, server)  # type: ignore[no-untyped-call]
        return tuple(
            service.full_name for contract in CONTRACTS for service in contract.DESCRIPTOR.services_by_name.values()
        )

    async def start(self) -> None:
        """Reach the queue, bring back what it lost, then look after it."""
        await asyncio.to_thread(self._empty_uploads)
        await self._queue.ping()
        await self._reconciler.run()
        self._collector = QueueCollector(self._queue, asyncio.get_running_loop())
        self._registry.register(self._collector)
        self._tasks = [*self._keep_house(), *self._keep_rules()]

    async def stop(self) -> None:
        """End the housekeeping and hang up."""
        # By a flag: a cancellation that meets a call to the queue may be lost inside the client.
        await EssentialTask.end_all(self._tasks, self._stopping.set)
        if self._collector is not None:
            self._registry.unregister(self._collector)
        if self._scorer is not None:
            await self._scorer.close()
        await self._queue.close()

    def _keep_house(self) -> Iterator[EssentialTask]:
        """Every third of a lease; a queue or a store that is away for a while is no reason to end.

        Nothing keeps leases from being looked at: a store that hangs holds the others for minutes.
        """
        every_s = self._settings.lease_s / 3
        works = (self._expire_uploads, self._restore_lost, self._recover, self._broken_off.go_on)
        house = repeat(*works, every_s=every_s, stop=self._stopping, name="housekeeping")
        yield EssentialTask(house, name="the housekeeping")
        reaping = repeat(self._reap, every_s=every_s, stop=self._stopping, name="reaping")
        yield EssentialTask(reaping, name="the reaping")

    def _keep_rules(self) -> Iterator[EssentialTask]:
        """Apply retention now and then, beside the housekeeping: it may take long. Not at each start."""
        if (every_s := self._settings.retention_every_s) is not None:
            rules = repeat(self._apply_retention, every_s=every_s, stop=self._stopping, name="retention")
            yield EssentialTask(rules, name="the retention")

    async def _expire_uploads(self) -> None:
        await asyncio.to_thread(self._uploads.expire, self._settings.upload_ttl_s)

    async def _reap(self) -> None:
        self._metrics.reaped.inc(await reap(self._reaper, store=self._store))

    async def _restore_lost(self) -> None:
        if await self._reconciler.may_lack_jobs():
            await self._reconciler.run()

    async def _recover(self) -> None:
        await asyncio.to_thread(self._recovery.run)

    async def _apply_retention(self) -> None:
        things = size_bytes = 0
        async with contextlib.aclosing(self._retention.apply(dry_run=False)) as removals:
            async for removal in removals:
                things, size_bytes = things + 1, size_bytes + removal.size_bytes
                if self._stopping.is_set():
                    break
        if things:
            logger.info("retention applied", extra={"things": things, "size_bytes": size_bytes})

    def _empty_uploads(self) -> None:
        shutil.rmtree(self._settings.uploads, ignore_errors=True)
        self._settings.uploads.mkdir(parents=True, exist_ok=True)
