"""The process around a worker: it runs jobs, ends cleanly when asked to, and never outlives its worker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, connect
from madpo.types import JobKind, JobResult, JobState

# Serves the evaluation queue with a run that succeeds at once.
SERVICE = """
import sys
from madpo.worker import service
from madpo.rpc.server import run_service
from madpo_evaluator.settings import EvaluatorSettings

def command(workspace):
    run = "import sys, pathlib; from madpo.worker.workspace import Run; from madpo.types import JobResult;"
    run += "Run.open(pathlib.Path(sys.argv[1])).succeed(JobResult(summary={'done': True}))"
    return [sys.executable, "-c", run, str(workspace)]

def build(settings, registry):
    return service.WorkerService(settings, registry, queue_name="evaluate", command=command, abilities=["words"])

PRELUDE
sys.exit(run_service("evaluator", EvaluatorSettings, build))
"""

WORKER_DIES = """
class Dying(service.JobWorker):
    async def run(self, stop):
        raise RuntimeError("the worker met a defect")

service.JobWorker = Dying
"""

WORKER_RETURNS = """
class Returning(service.JobWorker):
    async def run(self, stop):
        return

service.JobWorker = Returning
"""


@asynccontextmanager
async def running(
    home: Path, redis_url: str, namespace: str, *, prelude: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    settings = {
        "MADPO_EVALUATOR_STORE_URL": f"file://{home / 'store'}",
        "MADPO_EVALUATOR_REDIS_URL": redis_url,
        "MADPO_EVALUATOR_REDIS_NAMESPACE": namespace,
        "MADPO_EVALUATOR_WORKSPACE": str(home / "work"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVICE.replace("PRELUDE", prelude),
        env=os.environ | settings,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def queue(redis_url: str, redis_namespace: str) -> AsyncIterator[RedisJobQueue]:
    queue = connect(redis_url, namespace=redis_namespace)
    yield queue
    await queue.close()


async def test_a_service_runs_jobs_and_ends_with_code_0_on_sigterm(
    tmp_path: Path, redis_url: str, redis_namespace: str, queue: RedisJobQueue
) -> None:
    spec = {"model": {"model_id": "model-" + "0" * 32}, "prompt_dataset": "dataset-" + "0" * 32}
    job = await queue.create(JobRequest("request", JobKind.EVALUATION, spec))
    async with running(tmp_path, redis_url, redis_namespace) as process:
        async for _ in queue.watch(job.job_id):
            pass
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()

    ended = await queue.get(job.job_id)
    assert (ended.state, ended.result) == (JobState.SUCCEEDED, JobResult(summary={"done": True})), log.decode()
    assert process.returncode == 0, log.decode()


async def test_a_service_says_what_it_can_do(
    tmp_path: Path, redis_url: str, redis_namespace: str, queue: RedisJobQueue
) -> None:
    async with running(tmp_path, redis_url, redis_namespace):
        while not (known := await queue.announced("evaluate")):
            await asyncio.sleep(0.02)

    assert known == (frozenset({"words"}),)


@pytest.mark.parametrize(
    ("prelude", "reason"),
    [
        (WORKER_DIES, "the worker met a defect"),
        (WORKER_RETURNS, "the worker of queue evaluate ended without being asked to"),
    ],
)
async def test_a_service_whose_worker_is_gone_ends_with_an_error(
    tmp_path: Path, redis_url: str, redis_namespace: str, prelude: str, reason: str
) -> None:
    async with running(tmp_path, redis_url, redis_namespace, prelude=prelude) as process:
        _, log = await process.communicate()

    assert process.returncode == 1
    assert reason in log.decode()


async def test_a_service_without_its_queue_says_so_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path, "redis://127.0.0.1:1/0", "none") as process:
        _, log = await process.communicate()

    assert process.returncode == 1
    assert "evaluator: " in log.decode()
