"""Jobs whose run does as it is told, and what becomes of them."""

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.config import WorkerSettings
from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, connect
from madpo.types import Job, JobKind, LogLine

QUEUE = "evaluate"
PATIENCE_S = 60

RUN = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from madpo.errors import UnavailableError
    from madpo.worker.failure import telling
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

    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    def die_by_file():
        run.log("waiting")
        while not os.path.exists(spec["file"]):
            time.sleep(0.01)
        die()

    def fail_by(error):
        with telling(run.directory):
            raise error

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

    def talk():
        run.log("talking")
        while not os.path.exists(spec["file"]):
            print("still here", flush=True)
            time.sleep(0.5)
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
        "talk": talk,
        "raise": lambda: fail_by(ValueError(f"no column {run.attempt}")),
        "disconnect": lambda: fail_by(ConnectionResetError("peer gone")),
        "crash_after_success": lambda: (work(), sys.exit(1)),
        "die_once": lambda: once(die),
        "die_by_file": die_by_file,
        "terminate_once": lambda: once(terminate),
        "neighbour_away_once": lambda: once(lambda: fail_by(UnavailableError("no scorer"))),
        "wait_once": lambda: once(wait),
        "ignore_once": lambda: once(ignore),
    }[spec["do"]]()
"""


def connect_by(settings: WorkerSettings) -> RedisJobQueue:
    return connect(settings.redis_url.get_secret_value(), namespace=settings.redis_namespace, lease_s=settings.lease_s)


async def create(queue: RedisJobQueue, do: str, *, name: str = "r", max_attempts: int = 3, **spec: str) -> str:
    request = JobRequest(name, JobKind.EVALUATION, {"do": do, **spec}, max_attempts=max_attempts)
    return (await queue.create(request)).job_id


async def ended(queue: RedisJobQueue, job_id: str) -> Job:
    async for _ in queue.watch(job_id):
        pass
    return await queue.get(job_id)


async def logged(queue: RedisJobQueue, job_id: str, line: str, *, times: int = 1) -> None:
    seen = 0
    async for event in queue.watch(job_id):
        seen += event.event == LogLine(line)
        if seen == times:
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
