"""Where it cannot be told what is needed, nothing is deleted: jobs that cannot be read, and a queue that lost some."""

import asyncio
import logging
from contextlib import aclosing
from functools import partialmethod
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from madpo.queue.keys import Keys
from madpo.storage import documents, keys
from madpo.storage.models import ModelStore
from madpo.storage.results import write_result
from madpo.types import JobResult, JobState
from madpo.v1 import job_service_pb2
from madpo.v1 import retention_service_pb2 as pb
from madpo_gateway.deletion import BrokenOffDeletions
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import Gateway, Material, make_material, refusal, running
from tests.integration.gateway.test_deletion import delete_dataset, delete_model, supervised
from tests.integration.gateway.test_retention import apply

ALL = {kind: {"days": 30} for kind in ("jobs", "models", "datasets", "checkpoints", "derived")}


async def delete_job(gateway: Gateway, job_id: str) -> Any:
    return await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=job_id))


async def cancel(gateway: Gateway, job_id: str) -> None:
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))


async def make_unreadable(gateway: Gateway, job_id: str, **changes: str) -> None:
    """As a newer version would have written it."""
    url = gateway.settings.redis_url.get_secret_value()
    async with aclosing(Redis.from_url(url)) as client:
        key = Keys(gateway.settings.redis_namespace).job(job_id)
        await client.hset(key, mapping=changes or {"kind": "distillation"})  # type: ignore[misc]


async def ended_job(gateway: Gateway, spec: dict[str, Any], request_id: str, **left: str) -> str:
    job_id = str((await gateway.create(spec, request_id)).job_id)
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    assert claim.job.job_id == job_id
    await gateway.queue.succeed(claim, JobResult(**left))  # type: ignore[arg-type]
    return job_id


@pytest.mark.parametrize("change", [{"kind": "distillation"}, {"format": "2"}, {"spec": '{"model": "%s"'}])
async def test_what_a_job_that_cannot_be_read_names_is_not_deleted(gateway: Gateway, change: dict[str, str]) -> None:
    ids = await make_material(gateway)
    left = (await gateway.upload_model(weights=5)).model.model_id
    first = await ended_job(gateway, supervised(ids), "first", model_id=left)
    spec = {"evaluation": {"model": {"job_id": first}, "prompt_dataset": ref(ids.prompts)}}
    strange = str((await gateway.create(spec, "strange")).job_id)
    changes = {name: value.replace("%s", ids.policy) for name, value in change.items()}
    await make_unreadable(gateway, strange, **changes)
    before = gateway.stored()
    needed = {left, ids.prompts} if "spec" not in change else {ids.policy, left}

    for thing_id in needed:
        delete = delete_model if thing_id.startswith("model-") else delete_dataset
        refused = await refusal(delete(gateway, thing_id))
        assert refused.code == "FAILED_PRECONDITION"
        assert f"{thing_id} may be needed by {strange}: the queue's record of" in refused.message
        assert "upgrade madpo, or delete that job first" in refused.message
    assert "may be needed by" in (await refusal(delete_job(gateway, first))).message
    removed = await apply(gateway, ALL)
    assert first not in " ".join(removed)
    assert not {each for each in needed if each in " ".join(removed)}
    assert [
        key for key in before if any(each in key for each in (*needed, first)) and key not in gateway.stored()
    ] == []


async def test_a_job_that_cannot_be_read_can_be_deleted_itself(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    strange = str((await gateway.create(supervised(ids), "strange")).job_id)
    await make_unreadable(gateway, strange)
    refused = await refusal(delete_job(gateway, strange))
    assert "PENDING: cancel it" in refused.message
    await make_unreadable(gateway, strange, kind="supervised_training")
    await cancel(gateway, strange)
    await make_unreadable(gateway, strange)

    await delete_job(gateway, strange)

    assert not [key for key in gateway.stored() if key.startswith("jobs/")]
    await delete_model(gateway, ids.policy)


async def test_what_can_be_made_again_stays_while_a_job_that_cannot_be_read_may_use_it(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    strange = str((await gateway.create(supervised(ids), "strange")).job_id)
    await cancel(gateway, strange)
    gateway.store.put(f"{keys.tokens(ids.completions, 'd' * 8)}/manifest.json", b"{}")
    await make_unreadable(gateway, strange)

    assert await apply(gateway, {"derived": {"days": 1}}) == []
    await make_unreadable(gateway, strange, kind="supervised_training")
    assert len(await apply(gateway, {"derived": {"days": 1}})) == 1


@pytest.fixture
def own_server(settings: GatewaySettings, redis_process: Any) -> GatewaySettings:
    """Settings of a gateway whose queue no other test has, and whose housekeeping does not come in between."""
    return settings.model_copy(update={"redis_url": SecretStr(redis_process.url), "lease_s": 300.0})


async def lose(settings: GatewaySettings, *job_ids: str) -> None:
    """Forget jobs, as a server does that comes back without what it had written last; or all of them."""
    async with aclosing(Redis.from_url(settings.redis_url.get_secret_value())) as client:
        if not job_ids:
            await client.flushall()
        names = Keys(settings.redis_namespace)
        for job_id in job_ids:
            await client.zrem(names.jobs, job_id)
            await client.delete(names.job(job_id), names.events(job_id), names.dependents(job_id))
            for queue in ("train", "evaluate"):
                await client.zrem(names.pending(queue), job_id)


async def needed_by_one_of_two(gateway: Gateway) -> tuple[Material, str, str]:
    ids = await make_material(gateway)
    other = (await gateway.upload_model(weights=7)).model.model_id
    rows = (await gateway.upload_dataset([{"prompt": "a", "completion": "b"}])).dataset.dataset_id
    first = await gateway.create({"supervised_training": {"model": {"model_id": other}, "dataset": ref(rows)}}, "1")
    second = await gateway.create(supervised(ids), "2")
    return ids, str(first.job_id), str(second.job_id)


@pytest.mark.parametrize("everything", [True, False])
async def test_a_queue_that_lost_jobs_learns_of_them_before_anything_is_deleted(
    own_server: GatewaySettings, everything: bool
) -> None:
    async with running(own_server) as gateway:
        ids, _, second = await needed_by_one_of_two(gateway)

        for call in (lambda: delete_model(gateway, ids.policy), lambda: delete_dataset(gateway, ids.completions)):
            await lose(own_server, *([] if everything else [second]))
            refused = await refusal(call())
            assert refused.code == "FAILED_PRECONDITION"
            assert f"is used by {second}, which is PENDING" in refused.message
        await lose(own_server, *([] if everything else [second]))
        removed = await apply(gateway, ALL)

        assert f"model {ids.policy}" not in removed
        assert f"dataset {ids.completions}" not in removed
        assert f"model {ids.reward}" in removed
        assert (await gateway.queue.get(second)).job_id == second


async def test_nothing_is_deleted_while_a_lost_job_cannot_be_restored(
    own_server: GatewaySettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(own_server) as gateway:
        ids, _, second = await needed_by_one_of_two(gateway)
        key = keys.job_spec(second)
        newer = documents.seal(documents.unseal(gateway.store.get(key), key=key) | {"kind": "distillation"})
        gateway.store.put(key, newer)
        before = gateway.stored()
        await lose(own_server)

        with caplog.at_level(logging.ERROR):
            refusals = [
                await refusal(delete_model(gateway, ids.reward)),
                await refusal(delete_dataset(gateway, ids.prompts)),
                await refusal(gateway.collect(gateway.retention.ApplyRetention, pb.ApplyRetentionRequest())),
                await refusal(
                    gateway.collect(gateway.retention.ApplyRetention, pb.ApplyRetentionRequest(dry_run=True))
                ),
            ]

        for refused in refusals:
            assert refused.code == "FAILED_PRECONDITION"
            assert "nothing is removed while the queue lacks a job that the object store has" in refused.message
            assert second in refused.message
        assert gateway.stored() == before
        # Its owner gives it up.
        await delete_job(gateway, second)
        await delete_model(gateway, ids.reward)
        assert not [each for each in gateway.stored() if second in each]


async def test_what_a_queue_lost_is_not_taken_for_a_base_that_nobody_needs(own_server: GatewaySettings) -> None:
    """The model that a lost job had left."""
    async with running(own_server) as gateway:
        ids = await make_material(gateway)
        left = (await gateway.upload_model(weights=5)).model.model_id
        first = await ended_job(gateway, supervised(ids), "first", model_id=left)
        write_result(gateway.store, first, JobState.SUCCEEDED, JobResult(left), "")
        spec = {"evaluation": {"model": {"job_id": first}, "prompt_dataset": ref(ids.prompts)}}
        await gateway.create(spec, "second")
        await lose(own_server)

        refused = await refusal(delete_model(gateway, left))

        assert refused.code == "FAILED_PRECONDITION"
        assert ModelStore(gateway.store, gateway.settings.scratch).get(left)


async def test_a_deletion_that_was_broken_off_is_gone_on_with(gateway: Gateway) -> None:
    """Of the first nothing was removed when its remover died; of the second the request was."""
    ids = await make_material(gateway)
    whole, begun = [await ended_job(gateway, supervised(ids), name) for name in ("whole", "begun")]
    for job_id in (whole, begun):
        write_result(gateway.store, job_id, JobState.SUCCEEDED, JobResult(), "")
        await gateway.queue.retire(job_id)
    gateway.store.delete(keys.job_spec(begun))
    now = 0.0
    deletions = BrokenOffDeletions(store=gateway.store, queue=gateway.queue, abandoned_s=60, clock=lambda: now)

    async def listed() -> set[str]:
        jobs = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest())
        for job in jobs.jobs:
            assert (await gateway.queue.get(job.job_id)).state is JobState.SUCCEEDED
        return {job.job_id for job in jobs.jobs}

    await deletions.go_on()
    now = 59.0
    await gateway.queue.retire(whole)  # somebody deletes it again
    await deletions.go_on()
    assert await listed() == set()
    now = 61.0
    await deletions.go_on()
    assert await listed() == set()
    assert [job.job_id async for job in gateway.queue.scan()] == [whole]
    assert not list(gateway.store.list(f"{keys.job(begun)}/"))
    now = 119.0
    await deletions.go_on()

    assert await listed() == {whole}
    assert await gateway.queue.retired() == {}
    await delete_job(gateway, whole)
    assert not [key for key in gateway.stored() if key.startswith("jobs/")]


async def test_a_gateway_looks_after_deletions_that_were_broken_off(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokenOffDeletions, "__init__", partialmethod(BrokenOffDeletions.__init__, abandoned_s=0.0))
    async with running(settings) as gateway:
        job_id = await ended_job(gateway, supervised(await make_material(gateway)), "job")
        await gateway.queue.retire(job_id)
        async with asyncio.timeout(60):
            while await gateway.queue.retired():
                await asyncio.sleep(0.05)
        assert (await gateway.queue.get(job_id)).state is JobState.SUCCEEDED
