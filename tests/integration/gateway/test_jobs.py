"""Jobs over the wire: made once, waiting for what they use, cancelled, watched."""

import asyncio
from typing import Any

import grpc
import pytest

from madpo.errors import NotFoundError
from madpo.jobs.base import job_id_of
from madpo.jobs.supervised_training import SupervisedTrainingSpec
from madpo.rpc import convert
from madpo.rpc.channel import call_metadata
from madpo.storage.results import read_result, read_spec
from madpo.types import CheckpointPublished, JobKind, JobProgress, JobResult, JobState, LogLine
from madpo.v1 import dataset_service_pb2, job_service_pb2, model_service_pb2
from madpo_gateway.reconcile import reconcile, record_outcome
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import NO_JOB, TOKEN, Gateway, make_material, refusal


async def test_jobs_are_created_and_wait_for_what_they_use(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    model = {"model_id": ids.policy}

    supervised = await gateway.create(
        {"supervised_training": {"model": model, "dataset": ref(ids.completions)}},
        "supervised",
        display_name="first",
    )
    reward = await gateway.create({"reward_training": {"model": model, "dataset": ref(ids.pairs)}}, "reward")
    policy = await gateway.create(
        {
            "policy_training": {
                "model": {"job_id": supervised.job_id},
                "dataset": ref(ids.pairs),
                "method": {"name": "madpo", "params": {"beta": 0.3}},
                "margin": {"reward_model": {"job_id": reward.job_id}},
            }
        },
        "policy",
    )
    evaluation = await gateway.create(
        {
            "evaluation": {
                "model": {"job_id": policy.job_id},
                "prompt_dataset": ref(ids.prompts),
                "reference": model,
                "reward_model": {"model_id": ids.reward},
                "eval_dataset": ref(ids.pairs),
            }
        },
        "evaluation",
        depends_on=[reward.job_id],
    )

    states = [convert.state_from_proto(job.state).value for job in (supervised, reward, policy, evaluation)]
    assert states == ["PENDING", "PENDING", "WAITING", "WAITING"]
    assert (list(policy.depends_on), list(evaluation.depends_on)) == (
        [supervised.job_id, reward.job_id],
        [reward.job_id, policy.job_id],
    )
    method = policy.spec.policy_training.method
    assert method.params["beta"] == pytest.approx(0.3)
    assert {"c_min", "c_max", "lam", "tau"} <= set(method.params)
    assert policy.spec.policy_training.training.global_batch_size == 32
    listed = await gateway.ask(gateway.jobs.ListJobs, job_service_pb2.ListJobsRequest(page_size=3))
    assert [job.job_id for job in listed.jobs] == [evaluation.job_id, policy.job_id, reward.job_id]
    kept = read_spec(gateway.store, supervised.job_id)
    assert (kept.kind, kept.display_name) == (JobKind.SUPERVISED_TRAINING, "first")
    assert SupervisedTrainingSpec.model_validate(kept.spec).dataset.dataset_id == ids.completions
    got = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=policy.job_id))
    assert got.job == policy


async def test_notes_of_the_caller_come_back_with_the_job_and_outlive_the_queue(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    spec = {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions)}}
    notes = {"ticket": "é-17", "team": ""}

    job = await gateway.create(spec, "noted", metadata=notes)

    assert dict(job.metadata) == notes
    assert read_spec(gateway.store, job.job_id).metadata == notes
    for wrong, said in (
        ({str(number): "" for number in range(17)}, "at most 16 entries, got 17"),
        ({"": "x"}, "names of 1 to 64"),
        ({"x": "y" * 513}, "values of at most 512"),
    ):
        refused = await refusal(gateway.create(spec, "refused", metadata=wrong))
        assert (refused.code, said in refused.message) == ("INVALID_ARGUMENT", True)


async def test_rules_for_scales_are_kept_in_the_job_and_a_calibration_waits_for_its_reward_model(
    gateway: Gateway,
) -> None:
    ids = await make_material(gateway)
    reward = await gateway.create(
        {"reward_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.pairs)}}, "reward"
    )
    margin = {"reward_model": {"job_id": reward.job_id}, "temperature": "fit"}
    policy = await gateway.create(
        {
            "policy_training": {
                "model": {"model_id": ids.policy},
                "dataset": ref(ids.pairs),
                "eval_dataset": ref(ids.pairs),
                "method": {"name": "madpo_posterior", "params": {"tau": {"quantile": 0.75}}},
                "margin": margin,
            }
        },
        "policy",
    )
    calibration = await gateway.create({"calibration": {"eval_dataset": ref(ids.pairs), **margin}}, "calibration")

    assert policy.spec.policy_training.method.params["tau"]["quantile"] == 0.75
    assert policy.spec.policy_training.margin.temperature.string_value == "fit"
    assert list(calibration.depends_on) == [reward.job_id]
    assert calibration.spec.calibration.method.params["tau"] == pytest.approx(6.906754778648554)
    queued = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=calibration.job_id))
    assert queued.job.spec.calibration.temperature.string_value == "fit"


async def test_margins_may_come_from_the_dataset_and_a_method_may_do_without(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    policy = {"model_id": ids.policy}

    with_margins = await gateway.create(
        {
            "policy_training": {
                "model": policy,
                "dataset": ref(ids.pairs_with_margins),
                "margin": {"source": "dataset"},
            }
        },
        "dataset",
    )
    without = await gateway.create(
        {"policy_training": {"model": policy, "dataset": ref(ids.pairs), "method": {"name": "dpo"}}}, "none"
    )

    assert with_margins.spec.policy_training.method.name == "madpo"
    assert not without.spec.policy_training.HasField("margin")


@pytest.mark.promise("J2")
async def test_a_request_sent_again_is_the_same_job_whatever_happened_since(gateway: Gateway) -> None:
    job_id = await gateway.ready_job("once")
    job = await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id))
    dataset_id = job.job.spec.supervised_training.dataset.dataset_id
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    await gateway.ask(gateway.datasets.DeleteDataset, dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id))
    spec = {
        "model": {"model_id": job.job.spec.supervised_training.model.model_id},
        "dataset": ref(dataset_id),
    }

    again = await gateway.create({"supervised_training": spec}, "once")
    other = await refusal(gateway.create({"supervised_training": spec | {"training": {"seed": 1}}}, "once"))

    assert (again.job_id, convert.state_from_proto(again.state)) == (job_id, JobState.CANCELLED)
    assert other.code == "ALREADY_EXISTS"


async def test_a_request_sent_many_times_at_once_is_one_job(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    spec = {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions)}}

    jobs = await asyncio.gather(*(gateway.create(spec, "once") for _ in range(8)))

    assert {job.job_id for job in jobs} == {job_id_of("once")}
    assert (await gateway.queue.status("train")).pending == 1


async def test_a_job_on_top_of_a_failed_one_is_refused(gateway: Gateway) -> None:
    failed = await gateway.ready_job()
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    await gateway.queue.fail(claim, "no luck")
    ids = await make_material(gateway)
    spec = {"model": {"job_id": failed}, "dataset": ref(ids.completions)}
    before = gateway.stored()

    refused = await refusal(gateway.create({"supervised_training": spec}, "second"))

    assert refused.code == "FAILED_PRECONDITION"
    assert f"{failed} is FAILED" in refused.message
    assert gateway.stored() == before


async def test_a_cancelled_job_is_over_at_once_or_asked_to_stop(gateway: Gateway) -> None:
    waiting, taken = await gateway.ready_job("waiting"), await gateway.ready_job("taken")
    request = job_service_pb2.CancelJobRequest

    first = (await gateway.ask(gateway.jobs.CancelJob, request(job_id=waiting))).job
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    second = (await gateway.ask(gateway.jobs.CancelJob, request(job_id=taken))).job

    assert claim is not None
    assert convert.state_from_proto(first.state) is JobState.CANCELLED
    assert read_result(gateway.store, waiting).state is JobState.CANCELLED
    assert (convert.state_from_proto(second.state), second.cancel_requested) == (JobState.RUNNING, True)
    assert (await gateway.queue.renew(claim)).cancel_requested
    assert (await refusal(gateway.ask(gateway.jobs.CancelJob, request(job_id=NO_JOB)))).code == "NOT_FOUND"


async def test_a_watch_sees_events_live_and_goes_on_behind_a_cursor(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    request = job_service_pb2.WatchJobRequest
    stream = gateway.jobs.WatchJob(request(job_id=job_id), metadata=call_metadata(TOKEN), timeout=30)
    live = [await stream.read()]

    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    live.append(await stream.read())
    await gateway.queue.publish(claim, [JobProgress(1, 2, {"loss": 0.5}), LogLine("halfway"), CheckpointPublished(1)])
    live += [await stream.read() for _ in range(3)]
    await gateway.queue.succeed(claim, JobResult())
    live.append(await stream.read())

    assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    names = [message.event.WhichOneof("event") for message in live]
    assert names == ["state_change", "state_change", "progress", "log", "checkpoint", "state_change"]
    again = await gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id))
    assert again == live
    rest = await gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id, cursor=live[2].event.cursor))
    assert rest == live[3:]
    nobody = await refusal(gateway.collect(gateway.jobs.WatchJob, request(job_id=NO_JOB)))
    assert nobody.code == "NOT_FOUND"
    nowhere = await refusal(gateway.collect(gateway.jobs.WatchJob, request(job_id=job_id, cursor="yesterday")))
    assert nowhere.code == "INVALID_ARGUMENT"


async def resume(gateway: Gateway, job_id: str, **fields: Any) -> Any:
    return (await gateway.ask(gateway.jobs.ResumeJob, job_service_pb2.ResumeJobRequest(job_id=job_id, **fields))).job


async def test_a_job_is_resumed_as_itself_and_ends_anew(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    failed = await gateway.queue.fail(claim, "no luck")
    record_outcome(gateway.store, failed)

    resumed = await resume(gateway, job_id)
    with pytest.raises(NotFoundError):
        read_result(gateway.store, job_id)
    repeated = await resume(gateway, job_id, resumes=0)
    again = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert again is not None
    record_outcome(gateway.store, failed)  # of a worker that comes late
    done = await gateway.queue.succeed(again, JobResult("model-1"))
    record_outcome(gateway.store, done)

    assert (resumed.job_id, resumed.resumes, repeated.resumes) == (job_id, 1, 1)
    assert convert.state_from_proto(resumed.state) is JobState.PENDING
    assert read_result(gateway.store, job_id).state is JobState.SUCCEEDED
    refused = await refusal(resume(gateway, job_id))
    assert (refused.code, "has succeeded" in refused.message) == ("FAILED_PRECONDITION", True)
    assert read_result(gateway.store, job_id).state is JobState.SUCCEEDED
    assert (await refusal(resume(gateway, NO_JOB))).code == "NOT_FOUND"


async def test_a_job_whose_data_is_gone_is_not_resumed(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    cancelled = (await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))).job
    dataset_id = cancelled.spec.supervised_training.dataset.dataset_id
    await gateway.ask(gateway.datasets.DeleteDataset, dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id))

    refused = await refusal(resume(gateway, job_id))

    assert f"there is no dataset {dataset_id}" in refused.message
    assert read_result(gateway.store, job_id).state is JobState.CANCELLED


async def test_a_deleted_job_is_gone_from_queue_and_store(gateway: Gateway) -> None:
    job_id, needed = await gateway.ready_job("over"), await gateway.ready_job("needed")
    dataset = (await gateway.upload_dataset([{"prompt": "p", "completion": "c"}])).dataset.dataset_id
    spec = {"model": {"job_id": needed}, "dataset": ref(dataset)}
    user = (await gateway.create({"supervised_training": spec}, "user")).job_id
    request = job_service_pb2.DeleteJobRequest

    running = await refusal(gateway.ask(gateway.jobs.DeleteJob, request(job_id=job_id)))
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    await gateway.queue.succeed(claim, JobResult())
    used = await refusal(gateway.ask(gateway.jobs.DeleteJob, request(job_id=needed)))
    await gateway.ask(gateway.jobs.DeleteJob, request(job_id=job_id))

    assert (running.code, "cancel it" in running.message) == ("FAILED_PRECONDITION", True)
    assert (used.code, f"is used by {user}, which is PENDING" in used.message) == ("FAILED_PRECONDITION", True)
    assert not [key for key in gateway.stored() if job_id in key]
    gone = await refusal(gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id)))
    assert gone.code == "NOT_FOUND"
    assert await reconcile(store=gateway.store, queue=gateway.queue) == 0


async def test_a_job_without_a_name_gets_that_of_its_model_and_what_it_makes(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    policy = await gateway.create(
        {"policy_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.pairs), "method": {"name": "dpo"}}},
        "policy",
    )
    look = await gateway.create(
        {"evaluation": {"model": {"job_id": policy.job_id}, "prompt_dataset": ref(ids.prompts)}}, "look"
    )
    named = await gateway.create(
        {"evaluation": {"model": {"job_id": policy.job_id}, "prompt_dataset": ref(ids.prompts)}},
        "named",
        display_name="mine",
    )
    name = (
        await gateway.ask(gateway.models.GetModel, model_service_pb2.GetModelRequest(model_id=ids.policy))
    ).model.display_name
    prefix = f"{name}-" if name else ""
    assert (policy.display_name, named.display_name) == (f"{prefix}dpo", "mine")
    assert look.display_name == f"{prefix}dpo-evaluation"
