"""Work in threads, on files that their caller removes afterwards."""

import asyncio
import threading

import pytest

from madpo_gateway.row_check import RowCheck
from madpo_gateway.spool import run_blocking


@pytest.mark.parametrize("run", [run_blocking, RowCheck().run])
async def test_a_caller_that_is_cancelled_waits_for_its_thread_however_often_it_is(run) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert may_end.wait(30)
        ended.set()

    task = asyncio.create_task(run(work))
    await asyncio.to_thread(began.wait, 30)
    for _ in range(3):
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
