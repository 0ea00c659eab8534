"""What a process leaves of itself for the next attempt: it has imported, and is otherwise like any other."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import WorkerSettings
from madpo.ports import ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.storage.logs import read_log
from madpo.types import Job, JobState
from madpo.worker import program, waiting
from madpo.worker.child import Child
from tests.integration.worker.runs import create, ended, gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts another's")

MODULE = """
    import os, threading, time
    from pathlib import Path

    from madpo.types import JobResult
    from madpo.worker.workspace import Run

    VERSION = 1
    Path(os.environ["IMPORTED"], str(os.getpid())).touch()
    print("imported")

    def may_be_copied():
        return True

    def main(workspace):
        run = Run.open(workspace)
        run.watch_lifeline()
        print("at work")
        if run.job.spec["do"] == "die" and run.attempt == 1:
            os.kill(os.getpid(), 9)
        if run.job.spec["do"] == "crash" and run.attempt == 1:
            os._exit(3)
        seen = {
            "environment": {name: value for name, value in os.environ.items() if name != "_"},
            "cwd": os.getcwd(),
            "leads_group": os.getpgid(0) == os.getsid(0) == os.getpid(),
            "parent": os.getppid(),
            "input": os.readlink("/proc/self/fd/0"),
            "output": os.readlink("/proc/self/fd/1") == os.readlink("/proc/self/fd/2") == str(workspace / "run.log"),
            "oom_score": Path("/proc/self/oom_score_adj").read_text(),
            "open_files": len(os.listdir("/proc/self/fd")),
        }
        run.succeed(JobResult(summary={"pid": os.getpid(), "version": VERSION, "seen": seen}))
"""
MODULE = textwrap.dedent(MODULE)


class Runs:
    """A module whose `main` is an attempt, and the processes that have imported it."""

    def __init__(self, home: Path) -> None:
        self.module, self.imported = home / "copied.py", home / "imported"
        self.imported.mkdir()
        self.write(MODULE)

    def write(self, text: str) -> None:
        self.module.write_text(text)
        os.utime(self.module, (0, 0))

    def imports(self) -> set[int]:
        return {int(path.name) for path in self.imported.iterdir()}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("IMPORTED", str(runs.imported))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return runs


@pytest.fixture
def settings(settings: WorkerSettings) -> WorkerSettings:
    """No process is started ahead."""
    return settings.model_copy(update={"spare_after_s": 600.0})


SPARE = program.command("copied")
COMMANDS: dict[str, Any] = {"command": lambda workspace: program.command("copied", workspace), "spare": SPARE}


async def run(queue: RedisJobQueue, do: str = "") -> Job:
    job = await ended(queue, await create(queue, do, name=uuid4().hex))
    assert job.state == JobState.SUCCEEDED, job.reason
    return job


def pid_of(job: Job) -> int:
    assert job.result is not None
    return int(job.result.summary["pid"])


def children_of(parent: int) -> set[int]:
    """The living ones."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(its_parent) == parent and state != "Z":
            found.add(int(stat.parent.name))
    return found


async def test_jobs_that_follow_each_other_import_once_and_are_like_one_by_itself(
    queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings, runs: Runs, working: Any
) -> None:
    async with working(command=COMMANDS["command"], registry=CollectorRegistry()):
        alone = await run(queue)
    (runs.imported / str(pid_of(alone))).unlink()

    async with working(**COMMANDS):
        jobs = [await run(queue) for _ in range(4)]

    assert runs.imports() == {pid_of(jobs[0])}
    assert len({pid_of(job) for job in jobs}) == 4
    for job in jobs:
        assert job.result is not None
        assert alone.result is not None
        assert job.result.summary["seen"] == alone.result.summary["seen"]
        assert job.result.summary["seen"]["leads_group"]
        assert job.result.summary["seen"]["output"]
        assert job.result.summary["seen"]["parent"] == os.getpid()
    logs = [read_log(store, job.job_id, attempt=1) for job in jobs]
    assert logs == [b"imported\nat work", *[b"at work"] * 3]


@pytest.mark.parametrize("trouble", ["die", "crash"])
async def test_the_attempt_after_a_crash_begins_with_a_process_of_its_own(
    queue: RedisJobQueue, runs: Runs, working: Any, trouble: str
) -> None:
    before = children_of(os.getpid())
    async with working(**COMMANDS):
        first = pid_of(await run(queue))
        job = await run(queue, trouble)
        assert job.attempt == 2
        assert runs.imports() == {first, pid_of(job)}
        assert len(children_of(os.getpid()) - before) == 1  # the copy that the second attempt has left
        await run(queue)
    assert runs.imports() == {first, pid_of(job)}


# A copy that takes its time before it leaves the group of the run; it notes its number first.
SLOW = """VERSION = 1
leave = os.setsid

def leave_late():
    Path(os.environ["IMPORTED"]).with_name("copy").write_text(str(os.getpid()))
    time.sleep(0.5)
    leave()

os.setsid = leave_late
"""


@pytest.fixture
async def told(runs: Runs, settings: WorkerSettings, tmp_path: Path) -> AsyncIterator[Callable[[], Child]]:
    """Starts a process that was told to begin, and to leave a copy first."""
    runs.write(MODULE.replace("VERSION = 1", SLOW))
    (tmp_path / "a1").mkdir()
    children = []

    def told() -> Child:
        children.append(Child.start(SPARE, log_path=tmp_path / "log", settings=settings, waits=True))
        children[0].tell(tmp_path / "a1", tmp_path / "log", leaves_copy=True)
        return children[0]

    yield told
    for child in children:
        child.kill()
        await child.exit_code()


async def test_a_copy_is_told_of_once_it_has_left_the_group_of_the_run(told: Callable[[], Child]) -> None:
    with waiting.adopting():
        child = told()
        while not (copy := child.copy()):
            await asyncio.sleep(0.02)
        assert os.getpgid(copy._pid) == os.getsid(copy._pid) == copy._pid
        copy.kill()
        assert await copy.exit_code() == -signal.SIGKILL


async def test_a_copy_that_another_process_has_adopted_ends(told: Callable[[], Child], tmp_path: Path) -> None:
    child = told()
    await child.exited  # it has told of its copy before
    assert child.copy() is None
    await gone(int((tmp_path / "copy").read_text()))


@pytest.mark.parametrize(
    "changed",
    [
        ("return True", "return False"),
        ("VERSION = 1", "VERSION = 1\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"),
    ],
    ids=["not wanted", "beside threads"],
)
async def test_where_there_can_be_no_copy_each_imports(
    queue: RedisJobQueue, runs: Runs, working: Any, changed: tuple[str, str]
) -> None:
    runs.write(MODULE.replace(*changed))
    async with working(**COMMANDS):
        pids = [pid_of(await run(queue)) for _ in range(2)]
    assert runs.imports() == set(pids)
    assert len(set(pids)) == 2


async def test_a_copy_whose_code_has_changed_imports_anew(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    async with working(**COMMANDS):
        first = pid_of(await run(queue))
        runs.module.write_text(MODULE.replace("VERSION = 1", "VERSION = 2"))
        job = await run(queue)
    assert job.result is not None
    assert job.result.summary["version"] == 2
    assert runs.imports() == {first, pid_of(job)}


async def test_a_copy_that_was_killed_is_done_without(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    before = children_of(os.getpid())
    async with working(**COMMANDS):
        first = pid_of(await run(queue))
        (copy,) = children_of(os.getpid()) - before - {first}
        os.kill(copy, signal.SIGKILL)
        await gone(copy)
        second = pid_of(await run(queue))
    assert second != copy
    assert runs.imports() == {first, second}


async def test_a_copy_ends_with_its_worker(queue: RedisJobQueue, runs: Runs, working: Any) -> None:
    before = children_of(os.getpid())
    async with working(**COMMANDS):
        await run(queue)
        (copy,) = children_of(os.getpid()) - before
    await gone(copy)
    assert not Path(f"/proc/{copy}").exists()


SUPERVISOR = """
    import asyncio, os, sys
    from pathlib import Path

    from madpo.config import WorkerSettings
    from madpo.worker import waiting
    from madpo.worker.child import Child

    home = Path(sys.argv[1])

    async def main():
        settings = WorkerSettings(store_url=f"file://{home}", redis_url="redis://x", workspace=home)
        with waiting.adopting():
            child = Child.start(sys.argv[2:], log_path=home / "log", settings=settings, waits=True)
            child.tell(home / "a1", home / "log", leaves_copy=True)
            while not (copy := child.copy()):
                await asyncio.sleep(0.02)
            print(copy._pid, flush=True)
            await asyncio.sleep(600)

    asyncio.run(main())
"""


async def test_a_copy_ends_when_its_supervisor_was_killed(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "a1").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(tmp_path), *SPARE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        copy = int(await asyncio.to_thread(supervisor.stdout.readline))
        assert copy in children_of(supervisor.pid)
        supervisor.kill()
    await gone(copy)


async def test_what_a_run_leaves_behind_is_no_zombie_of_its_worker(
    queue: RedisJobQueue, runs: Runs, working: Any
) -> None:
    leaving = MODULE.replace(
        "    seen = {",
        '    import subprocess\n    left = subprocess.Popen(["sleep", "600"])\n    Path(os.environ["IMPORTED"], "left")'
        ".write_text(str(left.pid))\n    seen = {",
    )
    runs.write(leaving)
    async with working(**COMMANDS):
        await run(queue)
        assert not Path("/proc", (runs.imported / "left").read_text()).exists()
