"""What nobody waits for ends the process, or is done again."""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator

import pytest

from madpo.background import EssentialTask, repeat
from madpo.errors import InternalError, UnavailableError


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What this process would have been sent."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


async def test_tasks_that_are_asked_by_one_flag_end_in_any_order(signals: list[int]) -> None:
    stop = asyncio.Event()

    async def work(pause_s: float) -> None:
        await stop.wait()
        await asyncio.sleep(pause_s)

    tasks = [EssentialTask(work(pause_s), name="the work") for pause_s in (0.05, 0)]
    await asyncio.sleep(0)
    await EssentialTask.end_all(tasks, stop.set)

    assert signals == []
    assert not any(task.is_running for task in tasks)


async def test_a_task_that_dies_ends_the_process_and_its_error_is_told(
    signals: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def die() -> None:
        raise KeyError("a defect")

    task = EssentialTask(die(), name="the work")
    while task.is_running:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert signals == [signal.SIGTERM]
    assert "the work has ended; the process ends" in caplog.text
    with pytest.raises(KeyError, match="a defect"):
        await task.end()


async def test_a_task_that_just_ends_ends_the_process_too(signals: list[int]) -> None:
    task = EssentialTask(asyncio.sleep(0), name="the work")
    while not signals:
        await asyncio.sleep(0)
    with pytest.raises(InternalError, match="the work ended without being asked to"):
        await task.end()


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_task_that_is_asked_to_end_ends_nothing_else(signals: list[int], cancel: bool) -> None:
    stop = asyncio.Event()

    async def wait() -> None:
        await stop.wait()

    task = EssentialTask(wait(), name="the work")
    await asyncio.sleep(0)
    await task.end(None if cancel else stop.set)
    await asyncio.sleep(0)

    assert signals == []
    assert not task.is_running


async def test_what_fails_again_and_again_is_logged_done_again_and_keeps_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop, done = asyncio.Event(), list[int]()

    def failures() -> Iterator[Exception | None]:
        yield from (UnavailableError("no store"), KeyError("a defect"), None)

    coming = failures()

    async def fail() -> None:
        if (error := next(coming)) is not None:
            raise error
        stop.set()

    async def work() -> None:
        done.append(len(done))

    with caplog.at_level(logging.WARNING):
        await repeat(work, fail, work, every_s=0.001, stop=stop, name="housekeeping")

    assert done == [0, 1, 2, 3, 4]
    logged = [(record.levelname, record.message) for record in caplog.records]
    assert logged == [(level, "housekeeping failed, trying again") for level in ("WARNING", "ERROR")]


@pytest.mark.parametrize("wait", ["lambda: None", "lambda: 1 / 0"])
def test_a_thread_that_waits_for_the_end_brings_it_also_when_it_fails(wait: str) -> None:
    program = f"""
        import time
        from madpo.background import exit_after
        exit_after({wait}, name="the end", exit_code=75)
        time.sleep(60)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 75
    assert ("the end failed" in done.stderr) == ("1 / 0" in wait)


@pytest.mark.parametrize("ends_first", [False, True])
@pytest.mark.parametrize("wait", [lambda future: future, asyncio.shield, lambda future: asyncio.wait([future])])
@pytest.mark.parametrize("turns", range(4))
async def test_a_timeout_that_meets_the_end_of_what_it_bounds_cancels_nothing_after_it(
    ends_first: bool, wait: Callable[[asyncio.Future[None]], Awaitable[object]], turns: int
) -> None:
    """A cancellation that stayed behind would end an essential task, and the process with it."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    async def bounded() -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as bound:
                loop.call_soon(meet, bound)
                await wait(over)
        for _ in range(4):
            await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    def meet(bound: asyncio.Timeout) -> None:
        acts = [lambda: over.set_result(None), lambda: bound.reschedule(loop.time())]
        first, second = acts if ends_first else acts[::-1]
        first()
        after(turns, second)

    def after(count: int, act: Callable[[], object]) -> None:
        if not count:
            with contextlib.suppress(RuntimeError, asyncio.InvalidStateError):  # the bound is over, the wait cancelled
                act()
        else:
            loop.call_soon(after, count - 1, act)

    assert await asyncio.create_task(bounded()) == 0
