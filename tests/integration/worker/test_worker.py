import asyncio
import os
import signal
import subprocess
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
from madpo.errors import InvalidArgumentError, NotFoundError, UnavailableError
from madpo.ports import Claim, JobRequest, ObjectStore
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect
from madpo.storage.local import LocalStore
from madpo.storage.results import read_result
from madpo.types import CheckpointPublished, Job, JobKind, JobProgress, JobResult, JobState, LogLine, StateChange
from madpo.worker.worker import JobWorker

QUEUE = "evaluate"
PATIENCE_S = 60

RUN = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from madpo.worker.workspace import Run
    from madpo.types import JobProgress, JobResult

    run = Run.open(Path(sys.argv[1]))
    run.watch_lifeline()
    spec = run.job.spec
    if "pids" in spec:
        with open(spec["pids"], "a") as file:
            print(os.getpid(), file=file)

    def work():
        print("hello from the run", flush=True)
        run.progress(JobProgress(1, 2, {"loss": 0.5}))
        run.checkpoint_published(1)
        run.succeed(JobResult("model-1", {"attempt": run.attempt}))

    def wait():
        run.log("waiting")
        while not run.stop_requested:
            time.sleep(0.01)
        run.checkpoint_published(1)
        run.stop()

    def ignore():
        run.log("waiting")
        time.sleep(600)

    def crash():
        print("\\n".join(f"line {i}" for i in range(100)))
        sys.exit(3)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def once(trouble):
        trouble() if run.attempt == 1 else work()

    def hang():
        work()
        time.sleep(600)

    def leave():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(spec["pids"], "a") as file:
            print(child.pid, file=file)
        work()

    def until_file():
        run.log("waiting")
        while not os.path.exists(spec["file"]):
            time.sleep(0.01)
        work()

    {
        "work": work, "wait": wait, "ignore": ignore, "crash": crash, "die": die, "hang": hang, "leave": leave,
        "until_file": until_file,
        "fail": lambda: run.fail("column chosen is missing"),
        "silent": lambda: None,
        "hang_once": lambda: once(ignore),
        "crash_after_success": lambda: (work(), sys.exit(1)),
        "die_once": lambda: once(die),
        "wait_once": lambda: once(wait),
        "ignore_once": lambda: once(ignore),
    }[spec["do"]]()
"""


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
        threads=1,
    )


@pytest.fixture
async def queue(settings: WorkerSettings) -> AsyncIterator[RedisJobQueue]:
    queue = connect_by(settings)
    yield queue
    await queue.close()


def connect_by(settings: WorkerSettings) -> RedisJobQueue:
    return connect(settings.redis_url.get_secret_value(), namespace=settings.redis_namespace, lease_s=settings.lease_s)


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


async def create(queue: RedisJobQueue, do: str, *, name: str = "r", max_attempts: int = 3, **spec: str) -> str:
    request = JobRequest(name, JobKind.EVALUATION, {"do": do, **spec}, max_attempts=max_attempts)
    return (await queue.create(request)).job_id


async def ended(queue: RedisJobQueue, job_id: str) -> Job:
    async for _ in queue.watch(job_id):
        pass
    return await queue.get(job_id)


async def logged(queue: RedisJobQueue, job_id: str, line: str) -> None:
    async for event in queue.watch(job_id):
        if event.event == LogLine(line):
            return


async def gone(pid: int) -> None:
    """Wait until the process has exited; a zombie waiting for its parent counts."""
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        await asyncio.sleep(0.02)


def outcomes(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "madpo_queue_attempts_total" and sample.value
    }


async def test_a_job_is_run_and_everything_it_says_is_passed_on(
    queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings, registry: CollectorRegistry, working: Any
) -> None:
    job_id = await create(queue, "work")
    async with working():
        events = [event.event async for event in queue.watch(job_id)]
    job = await queue.get(job_id)
    result = JobResult("model-1", {"attempt": 1})
    assert (job.state, job.result, job.progress) == (JobState.SUCCEEDED, result, JobProgress(1, 2, {"loss": 0.5}))
    assert [event for event in events if event in (job.progress, CheckpointPublished(1))] == [
        job.progress,
        CheckpointPublished(1),
    ]
    assert LogLine("hello from the run") in events
    assert read_result(store, job_id).result == result
    assert not (settings.workspace / "jobs" / job_id).exists()
    assert outcomes(registry) == {"succeeded": 1}


async def test_the_result_is_in_the_store_before_the_queue_calls_the_job_done(
    settings: WorkerSettings, store: ObjectStore, working: Any
) -> None:
    class StrictQueue(RedisJobQueue):
        async def succeed(self, claim: Claim, result: JobResult) -> Job:
            assert read_result(store, claim.job.job_id).result == result
            return await super().succeed(claim, result)

    inner = connect_by(settings)
    queue = StrictQueue(inner._client, namespace=settings.redis_namespace)
    job_id = await create(queue, "work")
    async with working(queue=queue):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
    await inner.close()


async def test_a_failure_is_final(
    queue: RedisJobQueue, store: ObjectStore, registry: CollectorRegistry, working: Any
) -> None:
    job_id = await create(queue, "fail")
    async with working():
        job = await ended(queue, job_id)
    assert (job.state, job.attempt, job.reason) == (JobState.FAILED, 1, "column chosen is missing")
    assert read_result(store, job_id).reason == "column chosen is missing"
    assert outcomes(registry) == {"failed": 1}


async def test_a_run_that_crashes_again_and_again_ends_with_its_last_words_and_blocks_nobody(
    queue: RedisJobQueue, store: ObjectStore, registry: CollectorRegistry, working: Any
) -> None:
    poison = await create(queue, "crash", name="poison")
    other = await create(queue, "work", name="other")
    async with working():
        job = await ended(queue, poison)
        assert (await ended(queue, other)).state == JobState.SUCCEEDED
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    assert job.reason.startswith("crashed 3 times without progress; last: the run exited with code 3")
    assert job.reason.splitlines()[1:] == [f"line {i}" for i in range(80, 100)]
    assert read_result(store, poison).state == JobState.FAILED
    assert outcomes(registry) == {"crashed": 3, "succeeded": 1}


async def test_a_run_that_was_killed_is_tried_again(queue: RedisJobQueue, working: Any) -> None:
    job_id = await create(queue, "die_once")
    async with working():
        reasons = [getattr(event.event, "reason", "") async for event in queue.watch(job_id)]
    job = await queue.get(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert "the run was killed by SIGKILL (out of memory?)" in reasons


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
    assert "the run ended while the object store was away; waiting for it: no store" in lines
    assert outcomes(registry) == {"given_back": 1, "succeeded": 1}


async def test_a_run_that_exits_without_a_word_has_crashed(queue: RedisJobQueue, working: Any) -> None:
    job_id = await create(queue, "silent", max_attempts=1)
    async with working():
        job = await ended(queue, job_id)
    assert (job.state, "exited with code 0" in job.reason) == (JobState.FAILED, True)


async def test_the_last_word_counts_whatever_the_exit_code(queue: RedisJobQueue, working: Any) -> None:
    job_id = await create(queue, "crash_after_success")
    async with working():
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED


async def test_a_run_that_hangs_after_its_last_word_is_killed(
    queue: RedisJobQueue, settings: WorkerSettings, working: Any
) -> None:
    job_id = await create(queue, "hang")
    async with working(settings=settings.model_copy(update={"stop_grace_s": 0.1})):
        job = await ended(queue, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_run_that_says_nothing_any_more_is_killed_as_hung_and_tried_again(
    queue: RedisJobQueue, settings: WorkerSettings, registry: CollectorRegistry, working: Any
) -> None:
    job_id = await create(queue, "hang_once")
    async with working(settings=settings.model_copy(update={"silence_s": 0.5})):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
    reasons = [event.event.reason async for event in queue.watch(job_id) if isinstance(event.event, StateChange)]
    assert any(reason.startswith("the run said nothing for 0.5 s and was killed as hung") for reason in reasons)
    assert outcomes(registry) == {"crashed": 1, "succeeded": 1}


async def test_processes_a_run_leaves_behind_are_killed(queue: RedisJobQueue, tmp_path: Path, working: Any) -> None:
    pids = tmp_path / "pids"
    job_id = await create(queue, "leave", pids=str(pids))
    async with working():
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
        for pid in pids.read_text().split():
            await gone(int(pid))


async def test_a_cancelled_run_writes_its_checkpoint_and_ends(
    queue: RedisJobQueue, store: ObjectStore, registry: CollectorRegistry, working: Any
) -> None:
    job_id = await create(queue, "wait")
    async with working():
        await logged(queue, job_id, "waiting")
        assert (await queue.cancel(job_id)).state == JobState.RUNNING
        events = [event.event async for event in queue.watch(job_id)]
    assert CheckpointPublished(1) in events
    assert (await queue.get(job_id)).state == JobState.CANCELLED
    assert read_result(store, job_id).state == JobState.CANCELLED
    assert outcomes(registry) == {"cancelled": 1}


async def test_a_run_that_ignores_its_cancellation_is_killed(
    queue: RedisJobQueue, settings: WorkerSettings, tmp_path: Path, working: Any
) -> None:
    pids = tmp_path / "pids"
    job_id = await create(queue, "ignore", pids=str(pids))
    async with working(settings=settings.model_copy(update={"stop_grace_s": 0.1})):
        await logged(queue, job_id, "waiting")
        await queue.cancel(job_id)
        assert (await ended(queue, job_id)).state == JobState.CANCELLED
        await gone(int(pids.read_text()))


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
            await queue._client.zadd(Keys(settings.redis_namespace).leases, {job_id: 1}, xx=True)
            await queue.reap()
            owner = await queue.claim(QUEUE, "other", timeout_s=0)
        await gone(int(pids.read_text()))
        assert (await queue.succeed(owner, JobResult("model-other"))).attempt == 2
    assert outcomes(registry) == {"lost": 1}
    with pytest.raises(NotFoundError):
        read_result(store, job_id)


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


async def test_a_command_that_cannot_start_is_named(queue: RedisJobQueue, working: Any) -> None:
    job_id = await create(queue, "work", max_attempts=1)
    async with working(command=lambda directory: ["no-such-program", str(directory)]):
        job = await ended(queue, job_id)
    assert job.state == JobState.FAILED
    assert "no-such-program" in job.reason


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


def test_leases_must_outlast_two_renewals(queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings) -> None:
    hasty = settings.model_copy(update={"lease_s": 10.0, "renew_s": 8.0})
    with pytest.raises(InvalidArgumentError, match="renew_s must be at most half of lease_s"):
        JobWorker(queue, store, queue_name=QUEUE, command=lambda _: [], settings=hasty)


def test_a_worker_does_not_load_torch() -> None:
    check = "import sys, madpo.worker.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
