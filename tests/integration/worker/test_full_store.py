"""An S3 server whose disk is full during a run: the run waits where it is, says so, and goes on when there is room."""

import asyncio
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from madpo.config import StoreSettings
from madpo.errors import UnavailableError
from madpo.queue.queue import RedisJobQueue
from madpo.storage.open import check_use, open_store
from madpo.types import CheckpointPublished, JobState, LogLine
from tests.conftest import S3Process
from tests.integration.worker.runs import create, ended, outcomes

SMALL, LARGE = ([f"-volume.max={count}", "-master.volumeSizeLimitMB=3"] for count in (8, 64))
"""Volumes of three megabytes each."""
RUN = """
    import os, sys
    from pathlib import Path
    from madpo.config import StoreSettings
    from madpo.types import JobResult
    from madpo.worker.store import open_run_store
    from madpo.worker.workspace import Run

    run = Run.open(Path(sys.argv[1]))
    run.watch_lifeline()
    store = open_run_store(StoreSettings.model_validate_json(os.environ["STORE"]), run)
    for number in range(1, 13):
        store.put(f"objects/{number}", os.urandom(4 << 20))
        run.checkpoint_published(number)
    run.succeed(JobResult("model-1", {"attempt": run.attempt}))
"""
PATIENCE_S = 240


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Process]:
    directory = tmp_path / "seaweedfs"
    directory.mkdir()
    server = S3Process(directory, access_key="key", secret_key="secret-secret", options=SMALL)
    server.start()
    yield server
    server.kill()


@pytest.mark.promise("D4")
@pytest.mark.timeout(2 * PATIENCE_S)
async def test_a_run_waits_for_room_in_the_store_and_no_attempt_is_spent(
    server: S3Process,
    queue: RedisJobQueue,
    registry: CollectorRegistry,
    tmp_path: Path,
    working: Any,
    monkeypatch: pytest.MonkeyPatch,
    figure: Any,
) -> None:
    where = {
        "store_url": "s3://full/tests",
        "s3_endpoint": server.endpoint,
        "s3_access_key": "key",
        "s3_secret_key": "secret-secret",
    }
    store = open_store(StoreSettings.model_validate(where))
    monkeypatch.setenv("STORE", json.dumps(where))
    script = tmp_path / "fill.py"
    script.write_text(textwrap.dedent(RUN))
    job_id = await create(queue, "fill", max_attempts=1)

    async with asyncio.timeout(PATIENCE_S):
        command = [sys.executable, str(script)]
        async with working(store=store, command=lambda directory: [*command, str(directory)]):
            said = ""
            async for event in queue.watch(job_id):
                if isinstance(event.event, LogLine) and event.event.line.startswith("waiting for the object store: "):
                    said = event.event.line
                    break
            assert "when it is written to: is there room on its disks?" in said
            with pytest.raises(UnavailableError, match="is there room on its disks"):
                await asyncio.to_thread(check_use, store)
            waiting = await queue.get(job_id)
            assert waiting.progress is not None
            assert (waiting.state, waiting.progress.phase) == (JobState.RUNNING, "waiting for the object store")

            server.kill()
            server.options = LARGE
            server.start()
            job = await ended(queue, job_id)

    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert len([*store.list("objects/")]) == 12
    events = [event.event async for event in queue.watch(job_id)]
    assert [event.step for event in events if isinstance(event, CheckpointPublished)] == list(range(1, 13))
    assert LogLine("the object store can be used again") in events
    assert outcomes(registry) == {"succeeded": 1}
    figure("a volume of 24 MB, 48 MB to write: 1 attempt, 12 of 12 objects")
