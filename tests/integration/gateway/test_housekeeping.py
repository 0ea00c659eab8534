"""What the gateway sees to by itself: dead jobs, a queue that lost everything, scratch."""

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from madpo.errors import NotFoundError, OverloadedError, UnavailableError
from madpo.ports import Claim, ObjectStore
from madpo.queue.keys import Keys
from madpo.queue.queue import RedisJobQueue, connect, job_id_of
from madpo.rpc import convert
from madpo.storage import documents, keys
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.recovery import Recovery
from madpo.storage.results import read_result, read_spec
from madpo.types import JobResult, JobState
from madpo.v1 import job_service_pb2
from madpo_gateway.servicers import jobs as servicer
from madpo_gateway.settings import GatewaySettings
from tests.damage import DAMAGES
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import Gateway, eventually, refusal, running


def unknown_kind(data: bytes) -> bytes:
    """As a newer version would write it."""
    return documents.seal(documents.unseal(data, key="") | {"kind": "distillation"})


def unknown_format(data: bytes) -> bytes:
    """The same."""
    return documents.seal(documents.unseal(data, key=""), version=2)


async def test_a_job_nobody_works_on_any_more_fails_in_the_end_and_that_is_recorded(settings: GatewaySettings) -> None:
    async with running(settings.model_copy(update={"lease_s": 0.15})) as gateway:
        job_id = await gateway.ready_job()
        # The last of many in a row: each before would make it pause.
        await gateway.queue._client.hset(Keys(settings.redis_namespace).job(job_id), "interruptions", 19)
        assert await gateway.queue.claim("train", "a worker that dies", timeout_s=10) is not None

        await eventually(lambda: gateway.store.head(keys.job_result(job_id)) is not None)

        outcome = read_result(gateway.store, job_id)
        assert outcome.state is JobState.FAILED
        assert "a worker that dies stopped renewing its lease" in outcome.reason


async def test_a_store_that_hangs_keeps_no_dead_workers_job_from_being_taken_back(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_hanging, answers = threading.Event(), threading.Event()

    def hang(_: Recovery) -> None:
        is_hanging.set()
        answers.wait()

    monkeypatch.setattr(Recovery, "run", hang)
    async with running(settings.model_copy(update={"lease_s": 0.15})) as gateway:
        job_id = await gateway.ready_job()
        await eventually(is_hanging.is_set)
        try:
            assert await gateway.queue.claim("train", "a worker that dies", timeout_s=10) is not None

            await eventually(lambda: is_in(gateway.queue, job_id, JobState.PENDING, cancel_requested=False))
        finally:
            answers.set()


@pytest.mark.promise("D2")
@pytest.mark.parametrize("restarted", [False, True])
async def test_jobs_come_back_after_the_queue_lost_everything(
    settings: GatewaySettings, redis_process: Any, restarted: bool
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})
    async with running(settings) as gateway:
        done, cancelled, open_job = [await gateway.ready_job(name) for name in ("done", "cancelled", "open")]
        claim = await gateway.queue.claim("train", "worker", timeout_s=5)
        assert claim is not None
        await gateway.queue.succeed(claim, JobResult(summary={"loss": 0.5}))
        job = await gateway.queue.get(done)
        write_outcome(gateway.store, job)
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=cancelled))
        following = await gateway.create(
            {
                "supervised_training": {
                    "model": {"job_id": open_job},
                    "dataset": ref(str(job.spec["dataset"]["dataset_id"])),
                }
            },
            "following",
            display_name="after the others",
        )
        CheckpointStore(gateway.store, open_job, attempt=4).take_ownership()
        before = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
        # The gateway has seen its jobs once; only then can it miss them.
        await asyncio.sleep(0.3)
        if not restarted:
            await flush(redis_process.url)
            for job_id in (done, cancelled, open_job, following.job_id):  # many at once, in any order
                await eventually(partial(knows, gateway.queue, job_id))
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
    if restarted:
        await flush(redis_process.url)
        async with running(settings) as gateway:
            after = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())

    assert [job.job_id for job in after.jobs] == [job.job_id for job in before.jobs]
    restored = {job.job_id: job for job in map(convert.job_from_proto, after.jobs)}
    states = [restored[job_id].state.value for job_id in (done, cancelled, open_job, following.job_id)]
    assert states == ["SUCCEEDED", "CANCELLED", "PENDING", "WAITING"]
    assert restored[done].result == JobResult(summary={"loss": 0.5})
    assert restored[open_job].attempt == 4
    original = convert.job_from_proto(following)
    copy = restored[following.job_id]
    assert (copy.spec, copy.display_name, copy.depends_on) == (original.spec, "after the others", (open_job,))
    assert copy.create_time == pytest.approx(original.create_time, abs=1)


def write_outcome(store: ObjectStore, job: Any) -> None:
    from madpo.storage.results import write_result

    write_result(store, job.job_id, state=job.state, result=job.result, reason=job.reason)


async def flush(url: str) -> None:
    async with aclosing(Redis.from_url(url)) as client:
        await client.flushall()


async def knows(queue: RedisJobQueue, job_id: str) -> bool:
    return job_id in {job.job_id for job in (await queue.list(page_size=100))[0]}


@pytest.mark.parametrize("damage", [*DAMAGES, unknown_kind, unknown_format])
@pytest.mark.parametrize("document", [keys.job_spec, keys.job_result, keys.job_owner])
async def test_a_job_whose_documents_cannot_be_read_is_reported_and_the_others_come_back(
    settings: GatewaySettings, redis_process: Any, damage: Any, document: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        damaged, whole = await gateway.ready_job("damaged"), await gateway.ready_job("whole")
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=damaged))
        CheckpointStore(gateway.store, damaged, attempt=1).take_ownership()
        key = document(damaged)
        gateway.store.put(key, damage(gateway.store.get(key)))
    await flush(redis_process.url)

    with caplog.at_level(logging.ERROR):
        async with running(settings) as gateway:
            jobs, _ = await gateway.queue.list(page_size=10)

    assert whole in [job.job_id for job in jobs]
    if damage is not unknown_kind or document is keys.job_spec:
        assert damaged not in [job.job_id for job in jobs]
        (record,) = [record for record in caplog.records if record.message == "job cannot be restored"]
        assert key in record.error  # type: ignore[attr-defined]


@pytest.mark.promise("J1")
async def test_a_request_the_queue_lost_is_restored_not_made_anew(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        job_id = await gateway.ready_job("once")
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
        await flush(redis_process.url)

        assert await gateway.ready_job("once") == job_id

        assert (await gateway.queue.get(job_id)).state is JobState.CANCELLED


async def test_what_an_earlier_process_left_in_scratch_is_removed_and_nothing_else(settings: GatewaySettings) -> None:
    settings.uploads.mkdir(parents=True)
    (settings.uploads / "torn").write_bytes(b"x")
    (settings.scratch / "notes.txt").write_text("mine")

    async with running(settings) as gateway:
        assert gateway.spooled() == []

    assert (settings.scratch / "notes.txt").exists()


@pytest.mark.promise("J6")
async def test_a_cancellation_that_no_worker_had_seen_outlives_the_queue(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})
    async with running(settings) as gateway:
        job_id = await gateway.ready_job()
        assert await gateway.queue.claim("train", "worker", timeout_s=5) is not None
        asked = await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
        assert convert.job_from_proto(asked.job).state is JobState.RUNNING
    await flush(redis_process.url)

    async with running(settings) as gateway:
        job = await gateway.queue.get(job_id)
        assert (job.state, job.reason) == (JobState.CANCELLED, "cancelled on request")
        assert read_result(gateway.store, job_id).state is JobState.CANCELLED
        assert await gateway.queue.claim("train", "worker", timeout_s=0) is None


@pytest.mark.promise("D2")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_queue_restored_from_an_older_copy_catches_up_with_the_store(
    settings: GatewaySettings, redis_process: Any, tmp_path: Path, restarted: bool, figure: Any
) -> None:
    """Ended, cancelled, resumed, taken up and deleted: nothing of it is undone."""
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 0.3})

    async def cancel(gateway: Gateway, job_id: str) -> None:
        await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))

    async with running(settings) as gateway:
        names = ("pending", "running", "failed", "succeeded", "cancelled", "asked", "resumed", "taken-up", "deleted")
        jobs = {name: await gateway.ready_job(name) for name in names}
        # Of workers that are silent, and not taken for dead.
        queue = connect(redis_process.url, namespace=settings.redis_namespace, lease_s=3600)
        older = await claim_all(queue, but=[jobs["pending"]])
        await older[jobs["resumed"]].fail("boom")
        write_outcome(gateway.store, await gateway.queue.get(jobs["resumed"]))

        redis_process.kill()
        shutil.copytree(tmp_path / "redis", tmp_path / "older")
        redis_process.start()

        await older[jobs["failed"]].fail("no such column")
        await older[jobs["succeeded"]].succeed(JobResult(summary={"loss": 0.5}))
        for name in ("failed", "succeeded"):
            write_outcome(gateway.store, await gateway.queue.get(jobs[name]))
        await cancel(gateway, jobs["asked"])
        await cancel(gateway, jobs["cancelled"])
        await older[jobs["cancelled"]].finish_cancelled()
        write_outcome(gateway.store, await gateway.queue.get(jobs["cancelled"]))
        await gateway.ask(gateway.jobs.ResumeJob, job_service_pb2.ResumeJobRequest(job_id=jobs["resumed"]))
        CheckpointStore(gateway.store, jobs["taken-up"], attempt=4).take_ownership()
        await older[jobs["deleted"]].fail("boom")
        write_outcome(gateway.store, await gateway.queue.get(jobs["deleted"]))
        await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=jobs["deleted"]))
        if not restarted:
            set_back(redis_process, tmp_path)
            await queue.close()
            await eventually(lambda: is_in(gateway.queue, jobs["deleted"], JobState.RUNNING, cancel_requested=True))
    if restarted:
        set_back(redis_process, tmp_path)
        await queue.close()

    async with running(settings) as gateway:
        found = {name: await gateway.queue.get(job_id) for name, job_id in jobs.items()}

    states = {name: (job.state.value, job.attempt, job.resumes) for name, job in found.items()}
    assert states == {
        "pending": ("PENDING", 1, 0),
        "running": ("RUNNING", 1, 0),
        "failed": ("FAILED", 1, 0),
        "succeeded": ("SUCCEEDED", 1, 0),
        "cancelled": ("CANCELLED", 1, 0),
        "asked": ("RUNNING", 1, 0),
        "resumed": ("PENDING", 1, 1),
        "taken-up": ("PENDING", 4, 0),
        "deleted": ("RUNNING", 1, 0),
    }
    assert {name for name, job in found.items() if job.cancel_requested and not job.state.is_terminal} == {
        "asked",
        "deleted",
    }
    assert found["succeeded"].result == JobResult(summary={"loss": 0.5})
    assert found["failed"].reason == "no such column"
    figure("9 jobs set back, 7 changes since, 0 undone")


@pytest.mark.promise("D2")
async def test_an_end_that_had_not_reached_the_store_is_written_there(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        job_id = await gateway.ready_job()
        (claimed,) = (await claim_all(gateway.queue)).values()
        await claimed.fail("boom")  # and its worker was killed
    async with running(settings):
        pass
    await flush(redis_process.url)

    async with running(settings) as gateway:
        assert (await gateway.queue.get(job_id)).state is JobState.FAILED


def set_back(redis_process: Any, tmp_path: Path) -> None:
    redis_process.kill()
    shutil.rmtree(tmp_path / "redis" / "appendonlydir")
    shutil.copytree(tmp_path / "older" / "appendonlydir", tmp_path / "redis" / "appendonlydir")
    redis_process.start()


async def is_in(queue: RedisJobQueue, job_id: str, state: JobState, *, cancel_requested: bool) -> bool:
    try:
        job = await queue.get(job_id)
    except (NotFoundError, UnavailableError):
        return False
    return (job.state, job.cancel_requested) == (state, cancel_requested)


class Claimed:
    """A claim, and what its worker tells of it."""

    def __init__(self, queue: RedisJobQueue, claim: Claim) -> None:
        self.fail = partial(queue.fail, claim)
        self.succeed = partial(queue.succeed, claim)
        self.finish_cancelled = partial(queue.finish_cancelled, claim)


async def claim_all(queue: RedisJobQueue, *, but: Sequence[str] = ()) -> dict[str, Claimed]:
    claims = []
    while claim := await queue.claim("train", "worker", timeout_s=0):
        claims.append(claim)
    for claim in claims:
        if claim.job.job_id in but:
            await queue.give_back(claim)
    return {claim.job.job_id: Claimed(queue, claim) for claim in claims}


async def test_a_request_that_was_refused_for_want_of_a_queue_does_not_come_alive_later(
    settings: GatewaySettings, redis_process: Any
) -> None:
    settings = settings.model_copy(update={"redis_url": SecretStr(redis_process.url)})
    async with running(settings) as gateway:
        first = await gateway.ready_job("first")
        spec = {"supervised_training": json_spec((await gateway.queue.get(first)).spec)}
        async with aclosing(Redis.from_url(redis_process.url)) as client:
            await client.config_set("min-replicas-to-write", 1)
            refused = await refusal(gateway.create(spec, "refused"))
            retried = await refusal(gateway.create(spec, "retried"))
            await client.config_set("min-replicas-to-write", 0)
        assert (refused.code, retried.code) == ("UNAVAILABLE", "UNAVAILABLE")
        again = await gateway.create(spec, "retried")
        twice = await gateway.create(spec, "retried")
    await flush(redis_process.url)

    async with running(settings) as gateway:
        jobs, _ = await gateway.queue.list(page_size=10)

    assert again.job_id == twice.job_id
    assert {job.job_id for job in jobs} == {first, again.job_id}


async def test_a_job_whose_acceptance_cannot_be_kept_is_told_with_its_id(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await gateway.ready_job("first")
    spec = {"supervised_training": json_spec((await gateway.queue.get(first)).spec)}

    def full(*_: Any) -> None:
        raise OverloadedError("the store is full")

    with monkeypatch.context() as patched:
        patched.setattr(servicer, "accept_spec", full)
        refused = await refusal(gateway.create(spec, "r"))
    job_id = job_id_of("r")

    assert refused.code == "RESOURCE_EXHAUSTED"
    assert refused.message.startswith(f"{job_id} is queued, but that could not be kept: cancel it, or ask again")
    assert (await gateway.create(spec, "r")).job_id == job_id
    assert read_spec(gateway.store, job_id, only_accepted=True).job_id == job_id


def json_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The model and the data of a kept spec, to be sent again."""
    return json.loads(json.dumps({name: spec[name] for name in ("model", "dataset")}))
