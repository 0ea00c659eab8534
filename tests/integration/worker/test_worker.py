"""Runs of a worker: what they say is passed on, and how they end."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import WorkerSettings
from madpo.errors import InvalidArgumentError, NotFoundError, UnavailableError
from madpo.ports import Claim, ObjectStore
from madpo.queue.queue import RedisJobQueue
from madpo.storage.local import LocalStore
from madpo.storage.logs import read_log
from madpo.storage.results import accept_resume, read_result, read_standing, reopen_result
from madpo.types import CheckpointPublished, Job, JobProgress, JobResult, JobState, LogLine, StateChange
from madpo.worker import crash
from madpo.worker.worker import JobWorker
from tests.integration.worker.runs import QUEUE, connect_by, create, ended, gone, logged, outcomes


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


async def test_a_run_that_uses_torchs_compiler_leaves_nothing_in_the_temporary_directory(
    queue: RedisJobQueue, tmp_path: Path, run_script: Path, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    use = "from torch._inductor.runtime.cache_dir_utils import cache_dir; print('cache', cache_dir())"
    script = f'"{sys.executable}" -c "{use}" && exec "{sys.executable}" "{run_script}" "$0"'
    job_id = await create(queue, "work")

    async with working(command=lambda directory: ["sh", "-c", script, str(directory)]):
        events = [event.event async for event in queue.watch(job_id)]

    assert (await queue.get(job_id)).state == JobState.SUCCEEDED
    assert LogLine(f"cache {tmp_path / 'workspace' / 'compiled'}") in events
    assert list(temporary.iterdir()) == []


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


@pytest.mark.promise("J5")
async def test_a_run_that_crashes_again_and_again_ends_with_its_last_words_and_blocks_nobody(
    queue: RedisJobQueue, store: ObjectStore, registry: CollectorRegistry, working: Any
) -> None:
    poison = await create(queue, "crash", name="poison")
    other = await create(queue, "work", name="other")
    async with working():
        job = await ended(queue, poison)
        assert (await ended(queue, other)).state == JobState.SUCCEEDED
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    first = "the run exited with code 3 before it had finished; tried 3 times without progress"
    assert job.reason.splitlines()[0] == first
    assert job.reason.splitlines()[1:] == [f"line {i}" for i in range(80, 100)]
    assert read_result(store, poison).state == JobState.FAILED
    assert [read_log(store, poison, attempt=number).splitlines() for number in (1, 2, 3)] == [
        [f"line {i}".encode() for i in range(100)]
    ] * 3
    assert outcomes(registry) == {"crashed": 3, "succeeded": 1}


async def test_an_error_that_must_come_again_is_tried_twice_and_is_the_reason(
    queue: RedisJobQueue, registry: CollectorRegistry, working: Any
) -> None:
    job_id = await create(queue, "raise", max_attempts=9)
    async with working():
        job = await ended(queue, job_id)
    first, *log = job.reason.splitlines()
    assert (job.state, job.attempt) == (JobState.FAILED, 2)
    assert first == "ValueError: no column 2 (in __main__:fail_by); tried 2 times without progress"
    assert log[-1] == "ValueError: no column 2"
    assert outcomes(registry) == {"crashed": 2}


async def test_an_error_of_the_machine_keeps_its_attempts(queue: RedisJobQueue, working: Any) -> None:
    job_id = await create(queue, "disconnect")
    async with working():
        job = await ended(queue, job_id)
    assert (job.attempt, job.reason.splitlines()[0]) == (
        3,
        "ConnectionResetError: peer gone (in __main__:fail_by); tried 3 times without progress",
    )


@pytest.mark.parametrize(
    ("counter", "reason"),
    [
        ("oom_kill 4\n", "the run was killed by SIGKILL from outside: memory had not run out"),
        (None, "the run was killed by SIGKILL (out of memory?)"),
    ],
)
async def test_a_run_that_was_killed_is_tried_again(
    queue: RedisJobQueue,
    registry: CollectorRegistry,
    tmp_path: Path,
    working: Any,
    monkeypatch: pytest.MonkeyPatch,
    counter: str | None,
    reason: str,
) -> None:
    """Only where the kernel does not tell may the job itself have had a part in it."""
    if counter is not None:
        (tmp_path / "counter").write_text(counter)
    monkeypatch.setattr(crash, "_COUNTS", (tmp_path / "counter",))
    job_id = await create(queue, "die_once")
    async with working():
        reasons = [getattr(event.event, "reason", "") async for event in queue.watch(job_id)]
    job = await queue.get(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert reason in reasons
    assert outcomes(registry) == {"crashed" if counter is None else "interrupted": 1, "succeeded": 1}


async def test_a_run_that_the_kernel_killed_for_want_of_memory_says_so_and_has_crashed(
    queue: RedisJobQueue, registry: CollectorRegistry, tmp_path: Path, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, file = tmp_path / "counter", tmp_path / "die now"
    counter.write_text("oom_kill 4\n")
    monkeypatch.setattr(crash, "_COUNTS", (counter,))
    job_id = await create(queue, "die_by_file", file=str(file), max_attempts=1)
    async with working():
        await logged(queue, job_id, "waiting")
        counter.write_text("oom_kill 5\n")
        file.touch()
        job = await ended(queue, job_id)
    assert job.state == JobState.FAILED
    assert job.reason.startswith("the run was killed by SIGKILL: out of host memory")
    assert outcomes(registry) == {"crashed": 1}


@pytest.mark.parametrize("what", ["a neighbour that is away", "somebody's SIGTERM"])
async def test_what_ends_a_run_from_outside_spends_none_of_its_attempts(
    queue: RedisJobQueue, registry: CollectorRegistry, working: Any, what: str
) -> None:
    do = "neighbour_away_once" if what == "a neighbour that is away" else "terminate_once"
    job_id = await create(queue, do, max_attempts=1)
    async with working():
        reasons = [event.event.reason async for event in queue.watch(job_id) if isinstance(event.event, StateChange)]
    assert (await queue.get(job_id)).state == JobState.SUCCEEDED
    said = "no scorer" if do == "neighbour_away_once" else "the run was killed by SIGTERM"
    assert reasons[2].splitlines()[0] == said
    assert outcomes(registry) == {"interrupted": 1, "succeeded": 1}


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
    async with working(settings=settings.model_copy(update={"silence_s": 6})):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
    reasons = [event.event.reason async for event in queue.watch(job_id) if isinstance(event.event, StateChange)]
    assert any(reason.startswith("the run said nothing for 6 s and was killed as hung") for reason in reasons)
    assert outcomes(registry) == {"crashed": 1, "succeeded": 1}


async def test_processes_a_run_leaves_behind_are_killed(queue: RedisJobQueue, tmp_path: Path, working: Any) -> None:
    pids = tmp_path / "pids"
    job_id = await create(queue, "leave", pids=str(pids))
    async with working():
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
        for pid in pids.read_text().split():
            await gone(int(pid))


@pytest.mark.promise("J6")
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


async def test_a_cancelled_job_is_resumed_as_itself_and_its_second_end_counts(
    queue: RedisJobQueue, store: ObjectStore, working: Any
) -> None:
    job_id = await create(queue, "wait")
    async with working():
        for attempt in (1, 2):
            await logged(queue, job_id, "waiting", times=attempt)
            await queue.cancel(job_id)
            cancelled = await ended(queue, job_id)
            assert (cancelled.state, cancelled.attempt) == (JobState.CANCELLED, attempt)
            # The worker may be about to record the end that is taken back here; it comes too late.
            reopen_result(store, cancelled)
            accept_resume(store, await queue.resume(job_id, resumes=cancelled.resumes))
        await logged(queue, job_id, "waiting", times=3)
        with pytest.raises(NotFoundError):
            read_result(store, job_id)
        await queue.cancel(job_id)
        await ended(queue, job_id)
    assert read_standing(store, job_id).resumes == 2
    assert read_result(store, job_id).state == JobState.CANCELLED


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


async def test_a_command_that_cannot_start_is_named(queue: RedisJobQueue, working: Any) -> None:
    """It is the worker's fault: the job waits, longer each time, for one that can."""
    job_id = await create(queue, "work", max_attempts=1)
    async with working(command=lambda directory: ["no-such-program", str(directory)]):
        changes: list[StateChange] = []
        async for event in queue.watch(job_id):
            changes += [event.event] if isinstance(event.event, StateChange) else []
            if len(changes) == 3:
                break
    assert [change.state for change in changes] == [JobState.PENDING, JobState.RUNNING, JobState.PENDING]
    assert changes[-1].reason.startswith("worker worker failed:")
    assert "no-such-program" in changes[-1].reason


def test_leases_must_outlast_two_renewals(queue: RedisJobQueue, store: ObjectStore, settings: WorkerSettings) -> None:
    hasty = settings.model_copy(update={"lease_s": 10.0, "renew_s": 8.0})
    with pytest.raises(InvalidArgumentError, match="renew_s must be at most half of lease_s"):
        JobWorker(queue, store, queue_name=QUEUE, command=lambda _: [], settings=hasty)


def test_a_worker_does_not_load_torch() -> None:
    check = "import sys, madpo.worker.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


async def test_a_run_that_keeps_talking_is_not_hung_however_long_the_queue_is_away(
    queue: RedisJobQueue, settings: WorkerSettings, registry: CollectorRegistry, working: Any, tmp_path: Path
) -> None:
    """The queue answers nothing for longer than a run may be silent; the run prints all the while."""

    class AbsentQueue(RedisJobQueue):
        away = False

        async def _answer(self, call: Awaitable[Any]) -> Any:
            if self.away:
                call.close()  # type: ignore[attr-defined]
                raise UnavailableError("no queue")
            return await super()._answer(call)

    absent = AbsentQueue(queue._client, namespace=settings.redis_namespace)
    job_id = await create(queue, "talk", file=str(tmp_path / "go"))
    async with working(queue=absent, settings=settings.model_copy(update={"silence_s": 4})):
        await logged(queue, job_id, "talking")
        absent.away = True
        await asyncio.sleep(6)
        absent.away = False
        (tmp_path / "go").touch()
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
    assert outcomes(registry) == {"succeeded": 1}


class AwayStore(LocalStore):
    """A store that does not answer until it is told to."""

    is_away = True

    def check(self) -> None:
        if self.is_away:
            raise UnavailableError("no store")


async def test_a_job_cancelled_while_its_worker_waits_for_the_store_is_over(
    queue: RedisJobQueue, registry: CollectorRegistry, tmp_path: Path, working: Any
) -> None:
    job_id = await create(queue, "die")
    async with working(store=AwayStore(tmp_path / "store")):
        await logged(queue, job_id, "the run ended while the object store could not be used; waiting for it: no store")
        await queue.cancel(job_id)
        assert (await ended(queue, job_id)).state == JobState.CANCELLED


async def test_a_worker_drained_while_it_waits_for_the_store_gives_its_job_back_without_a_crash(
    queue: RedisJobQueue, registry: CollectorRegistry, settings: WorkerSettings, tmp_path: Path, working: Any
) -> None:
    store = AwayStore(tmp_path / "store")
    job_id = await create(queue, "die_once", max_attempts=1)
    async with working(store=store, settings=settings.model_copy(update={"stop_grace_s": 0.1})):
        await logged(queue, job_id, "the run ended while the object store could not be used; waiting for it: no store")
    assert (await queue.get(job_id)).state == JobState.PENDING
    assert outcomes(registry) == {"given_back": 1}
    store.is_away = False
    async with working(store=store, registry=CollectorRegistry()):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED


async def test_local_copies_beyond_the_bound_are_removed_between_jobs(
    queue: RedisJobQueue, settings: WorkerSettings, run_script: Path, working: Any
) -> None:
    fetch = textwrap.dedent(
        """
        import sys; from pathlib import Path; from madpo.storage.local_copies import LocalCopies
        LocalCopies(Path(sys.argv[1])).fetch("models/1", lambda directory: (directory / "weights").write_bytes(b"1"))
        """
    )
    copy = settings.copies / "models" / "1"
    script = (
        f'"{sys.executable}" -c \'{fetch}\' "{settings.copies}" && test -f "{copy}/weights" && '
        f'exec "{sys.executable}" "{run_script}" "$0"'
    )
    job_id = await create(queue, "work")

    async with working(
        command=lambda directory: ["sh", "-c", script, str(directory)],
        settings=settings.model_copy(update={"max_cache_bytes": 0}),
    ):
        assert (await ended(queue, job_id)).state == JobState.SUCCEEDED
        async with asyncio.timeout(30):
            while list(settings.copies.rglob("*1*")):
                await asyncio.sleep(0.02)
