"""Workers drained, killed and cut off: another takes over, and nothing is lost while queue or store is away."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.config import WorkerSettings
from madpo.errors import NotFoundError, UnavailableError
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.storage.local import LocalStore
from madpo.storage.results import read_result
from madpo.types import JobResult, JobState, LogLine
from tests.integration.worker.runs import PATIENCE_S, QUEUE, connect_by, create, ended, gone, logged, outcomes


async def test_a_run_that_ends_while_the_store_is_away_has_not_crashed(
    queue: RedisJobQueue, registry: CollectorRegistry, tmp_path: Path, working: Any
) -> None:
    class AbsentStore(LocalStore):
        checks = 3

        def check(self) -> None:
            if self.checks:
                self.checks -= 1
                raise UnavailableError("no store")

    job_id = await create(queue, "die_once", max_attempts=1)
    async with working(store=AbsentStore(tmp_path / "store")):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
    lines = [event.event.line async for event in queue.watch(job_id) if isinstance(event.event, LogLine)]
    assert "the run ended while the object store could not be used; waiting for it: no store" in lines
    assert outcomes(registry) == {"given_back": 1, "succeeded": 1}


@pytest.mark.parametrize("do", ["wait_once", "ignore_once"])
async def test_a_drained_worker_gives_its_job_back_and_the_next_one_goes_on(
    queue: RedisJobQueue, settings: WorkerSettings, registry: CollectorRegistry, working: Any, do: str
) -> None:
    job_id = await create(queue, do, max_attempts=1)
    if do == "ignore_once":
        settings = settings.model_copy(update={"stop_grace_s": 0.1})
    async with working(settings=settings):
        await logged(queue, job_id, "waiting")
    assert (await queue.get(job_id)).state == JobState.PENDING
    assert outcomes(registry) == {"given_back": 1}
    async with working(registry=None):
        job = await ended(queue, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)


async def test_a_job_lost_to_another_worker_is_dropped_at_once(
    queue: RedisJobQueue,
    settings: WorkerSettings,
    store: ObjectStore,
    registry: CollectorRegistry,
    tmp_path: Path,
    working: Any,
) -> None:
    pids = tmp_path / "pids"
    job_id = await create(queue, "ignore", pids=str(pids))
    async with working():
        await logged(queue, job_id, "waiting")
        owner = None
        while owner is None:  # the worker may renew between the two steps
            await queue.reap((await queue.leases()).held)
            owner = await queue.claim(QUEUE, "other", timeout_s=0)
        await gone(int(pids.read_text()))
        assert (await queue.succeed(owner, JobResult("model-other"))).attempt == 2
    assert outcomes(registry) == {"lost": 1}
    with pytest.raises(NotFoundError):
        read_result(store, job_id)


@pytest.mark.promise("D1")
async def test_a_run_outlives_an_outage_longer_than_its_lease_and_no_idle_worker_takes_it(
    redis_process: Any, settings: WorkerSettings, tmp_path: Path, working: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 3.0})
    queue = connect_by(settings)
    path = tmp_path / "go on"
    job_id = await create(queue, "until_file", file=str(path))
    async with working(queue=queue, settings=settings):
        await logged(queue, job_id, "waiting")
        async with working(queue=queue, settings=settings, worker_id="idle", registry=None):
            redis_process.kill()
            with pytest.raises(UnavailableError):
                await queue.get(job_id)
            await asyncio.sleep(settings.lease_s + 0.5)
            redis_process.start()
            # Long enough for the idle worker to reap, were it to begin at once.
            await asyncio.sleep(0.5)
            path.touch()
            job = await ended(queue, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    await queue.close()


@pytest.mark.promise("D1")
async def test_a_run_that_ends_while_redis_is_away_is_still_reported(
    redis_process: Any, settings: WorkerSettings, registry: CollectorRegistry, tmp_path: Path, working: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    queue = connect_by(settings)
    path, pids = tmp_path / "go on", tmp_path / "pids"
    job_id = await create(queue, "until_file", file=str(path), pids=str(pids))
    async with working(queue=queue, settings=settings):
        await logged(queue, job_id, "waiting")
        redis_process.kill()
        while not registry.get_sample_value("madpo_queue_renewals_failed_total", {"queue": QUEUE}):
            await asyncio.sleep(0.02)
        path.touch()
        await gone(int(pids.read_text()))
        redis_process.start()
        events = [event.event async for event in queue.watch(job_id)]
    job = await queue.get(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert events.count(LogLine("hello from the run")) == 1
    await queue.close()


@pytest.mark.promise("D4")
async def test_an_outcome_waits_for_the_store(queue: RedisJobQueue, tmp_path: Path, working: Any) -> None:
    class ShakyStore(LocalStore):
        refusals = 2

        def put_if_absent(self, key: str, data: bytes) -> bool:
            if self.refusals:
                self.refusals -= 1
                raise UnavailableError("the store is away")
            return super().put_if_absent(key, data)

    store = ShakyStore(tmp_path / "shaky")
    job_id = await create(queue, "work")
    async with working(store=store):
        job = await ended(queue, job_id)
    assert (job.state, job.attempt, store.refusals) == (JobState.SUCCEEDED, 1, 0)
    assert read_result(store, job_id).state == JobState.SUCCEEDED


@pytest.mark.promise("J3")
async def test_a_killed_worker_takes_its_run_along_and_another_takes_over(
    queue: RedisJobQueue, settings: WorkerSettings, run_script: Path, tmp_path: Path, working: Any
) -> None:
    pids = tmp_path / "pids"
    settings = settings.model_copy(update={"lease_s": 2.0})
    worker_script = tmp_path / "worker.py"
    worker_script.write_text(
        textwrap.dedent(f"""
            import asyncio, sys
            from pathlib import Path
            from madpo.config import WorkerSettings
            from madpo.queue.queue import connect
            from madpo.worker.worker import JobWorker
            from madpo.storage.local import LocalStore

            async def main():
                settings = WorkerSettings(
                    store_url={settings.store_url!r}, redis_url={settings.redis_url.get_secret_value()!r},
                    redis_namespace={settings.redis_namespace!r}, workspace={str(settings.workspace)!r},
                    lease_s=2.0, renew_s=0.05, poll_s=0.02,
                )
                queue = connect(settings.redis_url.get_secret_value(), namespace=settings.redis_namespace, lease_s=2.0)
                worker = JobWorker(
                    queue, LocalStore(Path({str(tmp_path / "store")!r})), queue_name={QUEUE!r},
                    command=lambda directory: [sys.executable, {str(run_script)!r}, str(directory)], settings=settings,
                )
                await worker.run(asyncio.Event())

            asyncio.run(main())
        """)
    )
    job_id = await create(queue, "ignore_once", pids=str(pids))
    doomed = subprocess.Popen([sys.executable, str(worker_script)])
    try:
        async with asyncio.timeout(PATIENCE_S):
            await logged(queue, job_id, "waiting")
            os.kill(doomed.pid, signal.SIGKILL)
            await gone(int(pids.read_text()))
        async with working(settings=settings):
            job = await ended(queue, job_id)
    finally:
        doomed.kill()
        doomed.wait()
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 2, JobResult("model-1", {"attempt": 2}))
