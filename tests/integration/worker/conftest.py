"""A worker over a real queue and a store, with runs that do as they are told."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.config import WorkerSettings
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.storage.local import LocalStore
from madpo.worker.worker import JobWorker
from tests.integration.worker.runs import PATIENCE_S, QUEUE, RUN, connect_by


@pytest.fixture
def run_script(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(textwrap.dedent(RUN))
    return path


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, redis_namespace: str) -> WorkerSettings:
    return WorkerSettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        workspace=tmp_path / "workspace",
        lease_s=30,
        renew_s=0.05,
        poll_s=0.02,
        stop_grace_s=30,
        spare_after_s=0,
        threads=1,
    )


@pytest.fixture
async def queue(settings: WorkerSettings) -> AsyncIterator[RedisJobQueue]:
    queue = connect_by(settings)
    yield queue
    await queue.close()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def working(
    queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings, run_script: Path, registry: CollectorRegistry
) -> Callable[..., Any]:
    """A worker that works as long as the context; leaving it drains the worker."""

    @asynccontextmanager
    async def working(**changed: Any) -> AsyncIterator[asyncio.Event]:
        arguments: dict[str, Any] = {
            "queue": queue,
            "store": store,
            "command": lambda directory: [sys.executable, str(run_script), str(directory)],
            "settings": settings,
            "registry": registry,
            "worker_id": "worker",
        } | changed
        worker = JobWorker(arguments.pop("queue"), arguments.pop("store"), queue_name=QUEUE, **arguments)
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield stop
        finally:
            stop.set()
            await task

    return working
