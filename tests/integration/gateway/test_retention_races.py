"""Retention beside people at work: what is uploaded, pinned, named or resumed meanwhile stays."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import pytest

from madpo.ports import JobRequest, ObjectStore
from madpo.storage import bundle, documents, keys, pins
from madpo.storage.checkpoints import CheckpointStore, list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.recovery import Recovery
from madpo.storage.withdrawals import withdraw
from madpo.types import AuditRecord, JobKind, JobState, Role
from madpo.v1 import dataset_service_pb2, job_service_pb2, model_service_pb2
from madpo.v1 import retention_service_pb2 as pb
from madpo_gateway.retention import Retention
from madpo_gateway.retention_policy import DAY_S
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.messages import model_parts, ref, safetensors
from tests.integration.gateway.service import COMPLETIONS, PAIRS, Gateway, eventually, refusal, running
from tests.integration.gateway.test_retention import ALL, Chain, apply, retention

Meanwhile = Callable[[], Awaitable[object]]


@pytest.fixture
async def chain(gateway: Gateway) -> Chain:
    return await Chain(gateway).make()


def grow_old(store: ObjectStore, prefix: str, *, days: float = 100) -> None:
    """As if it had been stored so long ago."""
    key = f"{prefix}/{keys.MANIFEST}"
    body = documents.unseal(store.get(key), key=key, sealed_always=True)
    body["create_time"] -= days * DAY_S
    store.put(key, documents.seal(body, version=None))


async def cancel(gateway: Gateway, job_id: str) -> None:
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))


@pytest.mark.parametrize("policy", [{"datasets": {"days": 30}, "models": {"days": 30}}, ALL])
async def test_what_is_uploaded_again_is_as_young_as_its_last_upload(
    gateway: Gateway, policy: Mapping[str, Any]
) -> None:
    dataset = (await gateway.upload_dataset(PAIRS)).dataset
    model = (await gateway.upload_model()).model
    for prefix in (keys.dataset(dataset.dataset_id), keys.model(model.model_id)):
        grow_old(gateway.store, prefix)
    would = [f"model {model.model_id}", f"dataset {dataset.dataset_id}"]
    assert await apply(gateway, policy, dry_run=True, later_s=0) == would

    again = await gateway.upload_dataset(PAIRS, name="under another name")
    assert not again.created
    assert not (await gateway.upload_model()).created

    assert await apply(gateway, policy, later_s=0) == []
    assert await apply(gateway, policy, later_s=29 * DAY_S) == []
    assert await apply(gateway, policy, later_s=31 * DAY_S) == would


async def test_a_model_that_two_jobs_left_stays_as_long_as_either_is_kept(gateway: Gateway, chain: Chain) -> None:
    """The same files, by content."""
    await chain.end()
    third = await chain._job("third", {"model_id": chain.base})
    await chain._succeed(third, chain.made)
    policy = {"jobs": {"days": 30, "keep_last": 1}, "models": {"days": 30}, "datasets": {"days": 30}}

    assert await apply(gateway, policy) == [f"job {chain.second}", f"job {chain.first}", f"model {chain.unused}"]
    assert ModelStore(gateway.store, gateway.settings.scratch).get(chain.made)


def interrupted(removing: Retention, monkeypatch: pytest.MonkeyPatch, kind: str, meanwhile: Meanwhile) -> None:
    """Have something happen once it is decided that a thing goes, and before it does."""
    delete = getattr(removing._deletion, kind)

    async def late(*args: Any, **fields: Any) -> None:
        await meanwhile()
        await delete(*args, **fields)

    monkeypatch.setattr(removing._deletion, kind, late)


def interrupted_in_the_middle(
    removing: Retention, monkeypatch: pytest.MonkeyPatch, kind: str, meanwhile: Meanwhile
) -> None:
    """The same while the thing is out of sight already."""
    look, looks = removing._require_free, 0

    async def late(thing_id: str, usage: Any) -> None:
        nonlocal looks
        looks += 1
        await look(thing_id, usage)
        if looks == 1:
            await meanwhile()

    monkeypatch.setattr(removing, "_require_free", late)


BOTH = pytest.mark.parametrize("interrupt", [interrupted, interrupted_in_the_middle])


async def removed(removing: Retention) -> list[str]:
    return [f"{each.kind} {each.thing_id}" async for each in removing.apply(dry_run=False)]


@BOTH
@pytest.mark.parametrize("kind", ["model", "dataset", "job"])
async def test_what_is_pinned_meanwhile_stays(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch, kind: str, interrupt: Any
) -> None:
    await chain.end()
    thing_id = {"model": chain.unused, "dataset": chain.dataset, "job": chain.second}[kind]
    if kind != "model":
        await apply(gateway, {"jobs": {"days": 1}} if kind == "dataset" else {})
    removing = retention(gateway, {f"{kind}s": {"days": 30}})
    interrupt(removing, monkeypatch, kind, partial(asyncio.to_thread, pins.pin, gateway.store, thing_id, caller="ana"))
    before = [key for key in gateway.stored() if thing_id in key]

    gone = await removed(removing)

    assert not [each for each in gone if thing_id in each or chain.first in each]
    assert set(before) <= set(gateway.stored())
    if kind == "job":
        assert (await gateway.queue.get(thing_id)).state is JobState.CANCELLED


@BOTH
@pytest.mark.parametrize("kind", ["model", "dataset"])
async def test_what_a_job_names_meanwhile_stays_also_when_that_is_over_again(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch, kind: str, interrupt: Any
) -> None:
    await chain.end()
    rows = (await gateway.upload_dataset([{"prompt": "a", "completion": "b"}])).dataset.dataset_id
    thing_id = chain.unused if kind == "model" else rows
    spec = {"model": {"model_id": chain.unused}, "dataset": {"dataset_id": rows}}
    removing = retention(gateway, {f"{kind}s": {"days": 30}})

    async def submit_and_cancel() -> None:
        job = await gateway.queue.create(JobRequest("late", JobKind.SUPERVISED_TRAINING, spec))
        await gateway.queue.cancel(job.job_id)

    interrupt(removing, monkeypatch, kind, submit_and_cancel)

    assert await removed(removing) == []
    assert [key for key in gateway.stored() if key.endswith(f"{thing_id}/{keys.MANIFEST}")]


@BOTH
async def test_what_is_uploaded_again_meanwhile_stays(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch, interrupt: Any
) -> None:
    await chain.end()
    rows = [{"prompt": "a", "completion": "b"}]
    dataset_id = (await gateway.upload_dataset(rows)).dataset.dataset_id
    removing = retention(gateway, {"datasets": {"days": 30}})
    interrupt(removing, monkeypatch, "dataset", lambda: gateway.upload_dataset(rows))

    assert await removed(removing) == []
    assert len(list(DatasetStore(gateway.store).read(dataset_id))) == 1


async def test_a_job_that_is_resumed_meanwhile_stays_with_all_it_needs(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chain.end()
    removing = retention(gateway, ALL)
    interrupted(removing, monkeypatch, "job", lambda: gateway.queue.resume(chain.second, resumes=0))

    assert await removed(removing) == [f"model {chain.unused}"]
    assert (await gateway.queue.get(chain.second)).state is JobState.PENDING


async def test_a_job_whose_checkpoint_is_named_while_it_is_deleted_stays(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for a job that only one of its checkpoints is named of."""
    await chain.end()
    spec = {"model": {"job_id": chain.first, "step": 2}, "dataset": ref(chain.dataset)}
    deletion = retention(gateway, {})._deletion
    retire = deletion._queue.retire

    async def late(job_id: str) -> Any:
        await gateway.queue.create(JobRequest("late", JobKind.SUPERVISED_TRAINING, spec))
        return await retire(job_id)

    monkeypatch.setattr(deletion._queue, "retire", late)
    with pytest.raises(Exception, match=f"{chain.first} is used by .*, which is PENDING"):
        await deletion.job(chain.first)

    assert (await gateway.queue.get(chain.first)).state is JobState.SUCCEEDED
    assert len(list(gateway.store.list(f"{keys.checkpoints(chain.first)}/"))) == 6
    # While it is out of use nobody can begin to need it.
    monkeypatch.undo()
    await gateway.queue.retire(chain.first)
    refused = await refusal(gateway.create({"supervised_training": spec}, "later"))
    assert f"there is no job {chain.first}" in refused.message


async def test_a_checkpoint_of_a_running_job_that_another_names_is_not_pruned(gateway: Gateway, chain: Chain) -> None:
    """A training goes on, and keeps its newest alone."""
    claim = await gateway.queue.claim("train", "a-worker", timeout_s=5)
    assert claim is not None
    assert claim.job.job_id == chain.second
    checkpoints = CheckpointStore(gateway.store, chain.second, attempt=claim.attempt)
    checkpoints.take_ownership()
    for step in (10, 20, 30):
        directory = gateway.settings.scratch / f"running-{step}"
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"x")
        checkpoints.publish(step, directory, metadata={})
    spec = {"model": {"job_id": chain.second, "step": 10}, "dataset": ref(chain.dataset)}
    third = str((await gateway.create({"supervised_training": spec}, "third")).job_id)

    checkpoints.prune(1)
    assert {each.step for each in list_checkpoints(gateway.store, chain.second)} == {30, 10}
    await cancel(gateway, third)
    checkpoints.prune(1)
    assert {each.step for each in list_checkpoints(gateway.store, chain.second)} == {30, 10}
    await gateway.ask(gateway.jobs.ResumeJob, job_service_pb2.ResumeJobRequest(job_id=third))
    await cancel(gateway, third)
    await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=third))
    checkpoints.prune(1)
    assert {each.step for each in list_checkpoints(gateway.store, chain.second)} == {30}


KEPT = {"checkpoints": {"days": 1, "keep_last": 1}}


async def test_checkpoints_stay_that_a_job_names_which_may_be_resumed(gateway: Gateway, chain: Chain) -> None:
    await chain.end()
    spec = {"model": {"job_id": chain.first, "step": 1}, "dataset": ref(chain.dataset)}
    third = str((await gateway.create({"supervised_training": spec}, "third")).job_id)
    assert await apply(gateway, KEPT) == []
    await cancel(gateway, third)

    assert await apply(gateway, KEPT) == [], "it may be resumed"
    assert await apply(gateway, KEPT, dry_run=True) == []
    await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=third))
    assert await apply(gateway, KEPT) == [f"checkpoint {chain.first}@{step}" for step in (2, 1)]


@pytest.mark.parametrize("in_the_middle", [True, False])
async def test_a_checkpoint_that_is_named_meanwhile_stays(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch, in_the_middle: bool
) -> None:
    await chain.end()
    spec = {"model": {"job_id": chain.first, "step": 2}, "dataset": {"dataset_id": chain.dataset}}
    removing = retention(gateway, KEPT)
    submit = partial(gateway.queue.create, JobRequest("late", JobKind.SUPERVISED_TRAINING, spec))
    if in_the_middle:
        look, looks = removing._require_checkpoints_free, 0

        async def late(job: Any, usage: Any) -> None:
            nonlocal looks
            looks += 1
            await look(job, usage)
            if looks == 1:
                await submit()

        monkeypatch.setattr(removing, "_require_checkpoints_free", late)
    else:
        interrupted(removing, monkeypatch, "checkpoint", submit)

    assert await removed(removing) == []
    assert len(list(gateway.store.list(f"{keys.checkpoints(chain.first)}/"))) == 6


async def test_a_damaged_checkpoint_does_not_take_the_place_of_the_last_good_one(
    gateway: Gateway, chain: Chain
) -> None:
    await chain.end()
    gateway.store.delete(f"{keys.checkpoint(chain.first, step=3, attempt=1)}/model.safetensors")

    assert await apply(gateway, KEPT) == [f"checkpoint {chain.first}@1"]


async def test_a_dry_run_says_what_a_run_does(gateway: Gateway, chain: Chain) -> None:
    """An adapter keeps its base; the checkpoints of a kept job keep theirs."""
    await chain.end()
    base = (await gateway.upload_model(weights=9)).model.model_id
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    policy = {"models": {"days": 30, "keep_last": 1}}
    files = {"adapter_config.json": documents.encode(config), "adapter_model.safetensors": safetensors(2)}
    await gateway.ask(gateway.models.UploadModel, model_parts(files))

    would = await apply(gateway, policy, dry_run=True)

    assert f"model {base}" not in would
    assert would == await apply(gateway, policy)


async def test_each_removal_is_in_the_audit_log(gateway: Gateway, chain: Chain) -> None:
    await chain.end()
    noted: list[AuditRecord] = []

    async def note(record: AuditRecord) -> None:
        noted.append(record)

    removing = retention(gateway, ALL, note=note)
    assert [each async for each in removing.apply(dry_run=True)]
    assert noted == []
    gone = [each async for each in removing.apply(dry_run=False)]

    assert len(noted) == len(gone) >= 5
    assert {(each.caller, each.role, each.method, each.code) for each in noted} == {
        ("operator", Role.ADMIN, "RetentionService/ApplyRetention", "OK")
    }
    assert noted[0].subjects[0] == f"job_id={chain.second}"
    assert {each.subjects[0] for each in noted} == {f"{each.kind}_id={each.thing_id}" for each in gone}


async def test_retention_by_call_notes_its_removals_under_the_caller(settings: GatewaySettings) -> None:
    policy = {"retention": {"models": {"days": 0}}}
    async with running(settings.model_validate({**settings.model_dump(), **policy})) as gateway:
        model_id = (await gateway.upload_model()).model.model_id
        (removal,) = await gateway.collect(gateway.retention.ApplyRetention, pb.ApplyRetentionRequest())
        assert removal.thing_id == model_id
        records = [documents.decode(gateway.store.get(info.key), key="") for info in gateway.store.list("audit/")]

    (record,) = [each for each in records if each["method"] == "RetentionService/ApplyRetention" and each["subjects"]]
    assert record["caller"] == "operator"
    assert f"model_id={model_id}" in record["subjects"]


async def test_retention_runs_by_itself_beside_the_housekeeping(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"retention": {"models": {"days": 0}}, "retention_every_s": 60}
    settings = settings.model_validate({**settings.model_dump(), **fields})
    settings = settings.model_copy(update={"retention_every_s": 0.05})
    async with running(settings) as gateway:
        model_id = (await gateway.upload_model()).model.model_id
        await eventually(lambda: not [key for key in gateway.stored() if key.startswith("models/")])
        await eventually(
            lambda: any(model_id.encode() in gateway.store.get(info.key) for info in gateway.store.list("audit/"))
        )


# ---- uploads and removals at the same time, over the wire

ROUNDS, UPLOADS = 4, 6


@pytest.mark.parametrize("by_hand", [True, False])
async def test_uploads_beside_retention_and_deletions_are_whole_once_they_are_answered(
    gateway: Gateway, by_hand: bool
) -> None:
    """Whoever was answered has a dataset; retention had decided before that it goes, others delete it by hand."""
    policy = {"datasets": {"days": 30}, "models": {"days": 30}}
    for round_ in range(ROUNDS):
        rows = [{"prompt": f"{round_} {n}", "completion": str(n)} for n in range(50)]
        dataset_id = (await gateway.upload_dataset(rows)).dataset.dataset_id
        model_id = (await gateway.upload_model(weights=round_ + 2)).model.model_id
        for prefix in (keys.dataset(dataset_id), keys.model(model_id)):
            grow_old(gateway.store, prefix)

        async def upload(rows: Any = rows, weights: int = round_ + 2) -> None:
            await asyncio.gather(gateway.upload_dataset(rows), gateway.upload_model(weights=weights))

        async def remove(dataset_id: str = dataset_id, model_id: str = model_id) -> None:
            if by_hand:
                await asyncio.gather(
                    gateway.ask(
                        gateway.datasets.DeleteDataset, dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id)
                    ),
                    gateway.ask(gateway.models.DeleteModel, model_service_pb2.DeleteModelRequest(model_id=model_id)),
                    return_exceptions=True,
                )
            else:
                await apply(gateway, policy, later_s=0)

        await asyncio.gather(remove(), *(upload() for _ in range(UPLOADS)))

        for prefix in (keys.dataset(dataset_id), keys.model(model_id)):
            is_gone = not [key for key in gateway.stored() if key.startswith(prefix)]
            # A deletion by hand may be the last that was asked for.
            assert bundle.find_whole(gateway.store, prefix) or (by_hand and is_gone), gateway.stored()
        if by_hand:
            await upload()
        assert len(list(DatasetStore(gateway.store).read(dataset_id))) == len(rows)
        assert not [key for key in gateway.stored() if key.startswith(keys.WITHDRAWN)]


async def test_an_adapter_stays_whose_base_is_out_of_sight_for_a_moment(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (await gateway.upload_model()).model.model_id
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    files = {"adapter_config.json": documents.encode(config), "adapter_model.safetensors": safetensors(2)}
    adapter = (await gateway.ask(gateway.models.UploadModel, model_parts(files))).model.model_id
    publish, models = ModelStore.publish, ModelStore(gateway.store, gateway.settings.scratch)
    out_of_sight = []

    def publish_late(self: ModelStore, *args: Any, **fields: Any) -> Any:
        published = publish(self, *args, **fields)
        out_of_sight.append(models.withdraw(base, stored_time=models.last_stored(base)))
        return published

    monkeypatch.setattr(ModelStore, "publish", publish_late)
    again = asyncio.create_task(gateway.ask(gateway.models.UploadModel, model_parts(files)))
    await eventually(lambda: out_of_sight)
    await asyncio.to_thread(out_of_sight[0].put_back)

    assert (await again).model.model_id == adapter
    assert models.get(adapter).base_model_id == base


async def test_a_dataset_that_a_dead_gateway_left_out_of_sight_is_put_back(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo_gateway.service.Recovery", partial(Recovery, abandoned_s=0.2))
    async with running(settings.model_copy(update={"lease_s": 0.3})) as gateway:
        dataset = (await gateway.upload_dataset(COMPLETIONS)).dataset
        prefix = keys.dataset(dataset.dataset_id)
        withdraw(gateway.store, prefix, stored_time=bundle.read_manifest(gateway.store, prefix).stored_time)

        await eventually(lambda: bundle.find_whole(gateway.store, prefix) is not None)

        request = dataset_service_pb2.GetDatasetRequest(dataset_id=dataset.dataset_id)
        assert (await gateway.ask(gateway.datasets.GetDataset, request)).dataset == dataset


async def test_a_pin_of_what_is_removed_at_this_moment_is_refused_and_leaves_nothing(gateway: Gateway) -> None:
    model_id = (await gateway.upload_model()).model.model_id
    models = ModelStore(gateway.store, gateway.settings.scratch)
    withdrawal = models.withdraw(model_id, stored_time=models.last_stored(model_id))

    assert (await refusal(gateway.ask(gateway.retention.Pin, pb.PinRequest(thing_id=model_id)))).code == "NOT_FOUND"
    assert pins.pinned(gateway.store) == frozenset()
    withdrawal.put_back()
    for _ in range(2):
        await gateway.ask(gateway.retention.Pin, pb.PinRequest(thing_id=model_id))
    assert pins.pinned(gateway.store) == {model_id}
