"""A process that is ready ahead: its attempt is like any other, and nothing depends on its being there."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import WorkerSettings
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.storage.logs import read_log
from madpo.types import Job, JobState
from madpo.worker import program
from madpo.worker.spare import Spare
from tests.integration.worker.runs import create, ended, gone

MODULE = """
    import os, sys, time
    from pathlib import Path

    from madpo.types import JobResult
    from madpo.worker.workspace import Run

    VERSION = 1
    Path(os.environ["READY"], str(os.getpid())).touch()
    print("imported")

    def main(workspace):
        run = Run.open(workspace)
        run.watch_lifeline()
        print("at work")
        environment = {name: value for name, value in os.environ.items() if name != "_"}
        seen = {
            "environment": environment,
            "cwd": os.getcwd(),
            "leads_group": os.getpgid(0) == os.getsid(0) == os.getpid(),
            "input": os.readlink("/proc/self/fd/0"),
            "output": os.readlink("/proc/self/fd/1") == str(workspace / "run.log"),
            "oom_score": Path("/proc/self/oom_score_adj").read_text(),
            "open_files": len(os.listdir("/proc/self/fd")),
        }
        run.succeed(JobResult(summary={"pid": os.getpid(), "version": VERSION, "seen": seen}))
"""


class Runs:
    """A module whose `main` is an attempt, and the processes that have imported it."""

    def __init__(self, home: Path) -> None:
        self.module, self.ready = home / "attempted.py", home / "ready"
        self.ready.mkdir()
        self.module.write_text(textwrap.dedent(MODULE))
        os.utime(self.module, (0, 0))

    async def next_ready(self, *, besides: int = 0) -> int:
        """The process that is the next to have imported it."""
        while not (pids := {int(path.name) for path in self.ready.iterdir()} - {besides}):
            await asyncio.sleep(0.02)
        return pids.pop()

    def command(self, workspace: Path) -> list[str]:
        return program.command("attempted", workspace)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    runs = Runs(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("READY", str(runs.ready))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return runs


SPARE = program.command("attempted")


async def run(queue: RedisJobQueue, name: str) -> Job:
    job = await ended(queue, await create(queue, "", name=name))
    assert job.state == JobState.SUCCEEDED, job.reason
    return job


async def test_a_ready_process_runs_the_next_job_as_one_of_its_own_would(
    queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings, runs: Runs, working: Any
) -> None:
    async with working(command=runs.command):
        alone = await run(queue, "alone")
    (runs.ready / str(alone.result.summary["pid"])).unlink()

    async with working(command=runs.command, spare=SPARE, registry=CollectorRegistry()):
        pid = await runs.next_ready()
        job = await run(queue, "ready")

    assert job.result.summary["pid"] == pid
    assert job.result.summary["seen"] == alone.result.summary["seen"]
    assert job.result.summary["seen"]["leads_group"]
    assert job.result.summary["seen"]["output"]
    assert read_log(store, job.job_id, attempt=1) == b"imported\nat work"
    assert not list(settings.workspace.glob("spare-*"))


async def test_each_attempt_has_a_process_of_its_own(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    async with working(command=runs.command, spare=SPARE):
        first = await runs.next_ready()
        assert (await run(queue, "first")).result.summary["pid"] == first
        second = await runs.next_ready(besides=first)
        assert (await run(queue, "second")).result.summary["pid"] == second


async def test_a_ready_process_that_was_killed_is_done_without(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    async with working(command=runs.command, spare=SPARE):
        pid = await runs.next_ready()
        os.kill(pid, signal.SIGKILL)
        assert (await run(queue, "job")).result.summary["pid"] != pid


async def test_code_that_has_changed_since_is_imported_anew(
    queue: RedisJobQueue, store: ObjectStore, runs: Runs, working: Any
) -> None:
    async with working(command=runs.command, spare=SPARE):
        pid = await runs.next_ready()
        runs.module.write_text(textwrap.dedent(MODULE).replace("VERSION = 1", "VERSION = 2"))
        job = await run(queue, "job")

    assert (job.result.summary["pid"], job.result.summary["version"]) == (pid, 2)


async def test_an_import_that_fails_is_told_by_the_job(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    runs.module.write_text(
        "import os, pathlib\npathlib.Path(os.environ['READY'], str(os.getpid())).touch()\nimport nix"
    )
    async with working(command=runs.command, spare=SPARE):
        await runs.next_ready()
        job = await ended(queue, await create(queue, "", max_attempts=1))

    assert job.state == JobState.FAILED
    assert job.reason.startswith("ModuleNotFoundError: No module named 'nix'")
    assert "install it where the worker runs" in job.reason


async def test_it_ends_with_its_worker(settings: WorkerSettings, runs: Runs, working: Any) -> None:
    async with working(command=runs.command, spare=SPARE):
        pid = await runs.next_ready()
    await gone(pid)
    assert not list(settings.workspace.glob("spare-*"))


async def test_the_log_that_a_killed_worker_left_of_its_own_goes(settings: WorkerSettings, runs: Runs) -> None:
    settings.workspace.mkdir(parents=True, exist_ok=True)
    left, others = (settings.workspace / f"spare-{name}.log" for name in ("left", "others"))
    for log in (left, others):
        log.touch()
    long_ago = time.time() - settings.spare_s - 60
    os.utime(left, (long_ago, long_ago))
    now = 0.0
    kept = Spare(SPARE, settings, clock=lambda: now)
    now = 10.0

    await kept.keep()

    assert (left.exists(), others.exists()) == (False, True)
    await runs.next_ready()
    await kept.discard()


def test_it_ends_when_its_supervisor_is_gone(runs: Runs) -> None:
    done = subprocess.run(SPARE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


async def test_it_is_kept_for_a_while_only(settings: WorkerSettings, runs: Runs) -> None:
    now = 0.0
    kept = Spare(SPARE, settings.model_copy(update={"spare_s": 100.0}), clock=lambda: now)
    await kept.keep()
    pid = await runs.next_ready()

    now = 100.0
    await kept.keep()
    await gone(pid)
    now = 300.0
    await kept.keep()

    assert [path.name for path in runs.ready.iterdir()] == [str(pid)]


async def test_none_is_kept_where_none_is_wanted(settings: WorkerSettings, runs: Runs) -> None:
    kept = Spare([sys.executable, "-c", "raise SystemExit"], settings.model_copy(update={"spare_s": 0.0}))
    await kept.keep()
    assert not list(settings.workspace.glob("spare-*"))
