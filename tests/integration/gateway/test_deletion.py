"""What is still needed is not deleted, also where the need arises meanwhile."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from madpo.ports import JobRequest
from madpo.storage import keys
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.storage.references import checkpoint_bases
from madpo.types import Job, JobKind, JobResult
from madpo.v1 import dataset_service_pb2, job_service_pb2, model_service_pb2
from madpo_gateway import deletion
from madpo_gateway.servicers import jobs as servicer
from tests.integration.gateway.messages import model_parts, ref, safetensors
from tests.integration.gateway.service import Gateway, Material, make_material, refusal


async def delete_model(gateway: Gateway, model_id: str) -> Any:
    return await gateway.ask(gateway.models.DeleteModel, model_service_pb2.DeleteModelRequest(model_id=model_id))


async def delete_dataset(gateway: Gateway, dataset_id: str) -> Any:
    request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id)
    return await gateway.ask(gateway.datasets.DeleteDataset, request)


def supervised(ids: Material, **training: Any) -> dict[str, Any]:
    spec = {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions)}
    return {"supervised_training": spec | ({"training": training} if training else {})}


@pytest.mark.parametrize("kind", ["model", "dataset"])
async def test_a_job_that_is_queued_while_a_thing_is_deleted_keeps_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ids = await make_material(gateway)
    spec = {"model": {"model_id": ids.policy}, "dataset": {"dataset_id": ids.completions}}
    loop, shelf = asyncio.get_running_loop(), ModelStore if kind == "model" else DatasetStore
    withdraw = shelf.withdraw

    def withdraw_late(self: Any, thing_id: str, **fields: Any) -> Any:
        """The look at jobs is over, nothing is gone yet."""
        job = JobRequest("late", JobKind.SUPERVISED_TRAINING, spec)
        asyncio.run_coroutine_threadsafe(gateway.queue.create(job), loop).result()
        return withdraw(self, thing_id, **fields)

    monkeypatch.setattr(shelf, "withdraw", withdraw_late)
    before = gateway.stored()
    call = delete_model(gateway, ids.policy) if kind == "model" else delete_dataset(gateway, ids.completions)

    refused = await refusal(call)

    assert refused.code == "FAILED_PRECONDITION"
    assert "which is PENDING: cancel it or wait for its end" in refused.message
    assert gateway.stored() == before


async def test_a_job_whose_data_is_deleted_while_it_is_checked_is_refused_and_does_not_run(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await make_material(gateway)
    write_spec = servicer.write_spec

    def write_late(store: Any, job: Job, **acceptance: bool) -> None:
        """All is checked, nothing is queued yet."""
        write_spec(store, job, **acceptance)
        DatasetStore(store).delete(ids.completions)

    monkeypatch.setattr(servicer, "write_spec", write_late)

    refused = await refusal(gateway.create(supervised(ids)))

    assert list(refused.violations) == ["spec.supervised_training.dataset.dataset_id"]
    assert f"there is no dataset {ids.completions}" in refused.message
    assert await gateway.queue.claim("train", "worker", timeout_s=0) is None


async def test_an_adapter_whose_base_is_deleted_while_it_is_stored_is_not_left_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (await gateway.upload_model()).model.model_id
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors(2)}
    publish = ModelStore.publish

    def publish_late(self: ModelStore, directory: Path, **fields: Any) -> Any:
        """The base is found, and nobody can see the adapter yet."""
        published = publish(self, directory, **fields)
        self.delete(base)
        return published

    monkeypatch.setattr(ModelStore, "publish", publish_late)

    refused = await refusal(gateway.ask(gateway.models.UploadModel, model_parts(files)))

    assert (refused.code, f"no model {base}" in refused.message) == ("NOT_FOUND", True)
    assert not [key for key in gateway.stored() if key.startswith("models/")]


async def test_the_base_of_checkpoints_stays_as_long_as_they_do(gateway: Gateway, tmp_path: Path) -> None:
    ids = await make_material(gateway)
    job_id = (await gateway.create(supervised(ids, lora={"rank": 2}))).job_id
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=claim.attempt)
    checkpoints.take_ownership()
    directory = tmp_path / "checkpoint"
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "madpo.json").write_text(json.dumps({"base_model_id": ids.policy}))
    checkpoints.publish(10, directory, metadata={})
    await gateway.queue.finish_cancelled(claim)

    needed = await refusal(delete_model(gateway, ids.policy))
    await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=job_id))
    await delete_model(gateway, ids.policy)

    assert needed.code == "FAILED_PRECONDITION"
    said = f"checkpoints of {job_id}, which is CANCELLED, are adapters of {ids.policy}: delete that job first"
    assert said in needed.message


async def test_what_checkpoints_belong_to_is_looked_up_once(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await make_material(gateway)
    job_id = (await gateway.create(supervised(ids, lora={"rank": 2}))).job_id
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    looked_up: list[str] = []

    def look_up(job: str, store: Any) -> set[str]:
        looked_up.append(job)
        return checkpoint_bases(job, store)

    monkeypatch.setattr(deletion, "checkpoint_bases", look_up)
    unused = [(await gateway.upload_model(weights=count)).model.model_id for count in (5, 6, 7)]
    await delete_model(gateway, unused[0])
    assert set(looked_up) == {job_id}, "it may get checkpoints yet"
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=claim.attempt)
    checkpoints.take_ownership()
    (tmp_path / "checkpoint" / "model").mkdir(parents=True)
    record = tmp_path / "checkpoint" / "model" / "madpo.json"
    record.write_text(json.dumps({"base_model_id": ids.policy}))
    checkpoints.publish(10, tmp_path / "checkpoint", metadata={})
    await gateway.queue.finish_cancelled(claim)
    looked_up.clear()

    for model_id in unused[1:]:
        await delete_model(gateway, model_id)
    assert looked_up == [job_id]
    assert (await refusal(delete_model(gateway, ids.policy))).code == "FAILED_PRECONDITION"
    await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=job_id))
    await delete_model(gateway, ids.policy)


async def test_a_job_is_not_asked_for_a_model_that_was_deleted_since(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    trainer = (await gateway.create(supervised(ids), "trainer")).job_id
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    left = (await gateway.upload_model(weights=5)).model.model_id
    await gateway.queue.succeed(claim, JobResult(left))
    spec = {"evaluation": {"model": {"job_id": trainer}, "prompt_dataset": ref(ids.prompts)}}

    await delete_model(gateway, left)
    refused = await refusal(gateway.create(spec, "late"))

    assert refused.violations == {
        "spec.evaluation.model.job_id": f"{trainer} left {left}, which was deleted: give one of its checkpoints"
    }


async def test_a_removal_looks_at_the_ids_of_jobs_and_not_at_all_that_they_left(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand jobs have some hundred thousand objects."""
    ids = await make_material(gateway)
    job = await gateway.create(supervised(ids))
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job.job_id))
    listed: list[str] = []
    found = LocalStore.list

    def list_noted(self: LocalStore, prefix: str) -> Any:
        listed.append(prefix)
        return found(self, prefix)

    monkeypatch.setattr(LocalStore, "list", list_noted)
    await delete_dataset(gateway, ids.prompts)
    await gateway.ask(gateway.jobs.DeleteJob, job_service_pb2.DeleteJobRequest(job_id=job.job_id))

    assert [prefix for prefix in listed if f"{prefix.rstrip('/')}/" == f"{keys.JOBS}/"] == []
    assert f"{keys.job(job.job_id)}/" in listed
