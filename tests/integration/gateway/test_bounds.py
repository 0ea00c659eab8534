"""What asks for too much is refused where jobs are created, and read where it was stored before."""

from typing import Any

from madpo.storage.results import write_spec
from madpo.types import Job, JobKind, JobState
from madpo.v1 import job_service_pb2 as pb
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import Gateway, make_material, ref, refusal, running


async def test_a_new_job_that_asks_for_too_much_is_refused_with_all_that_is_too_much(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    training = {"epochs": 1e308, "global_batch_size": 2**31 - 1, "lora": {"rank": 10**9}}
    margin = {"reward_model": {"model_id": ids.reward}}
    method = {"name": "madpo", "params": {"beta": 1e300}}
    spec: dict[str, Any] = {"model": {"model_id": ids.policy}, "dataset": ref(ids.pairs), "margin": margin}
    refused = await refusal(gateway.create({"policy_training": spec | {"training": training, "method": method}}))
    assert (refused.code, refused.violations) == (
        "INVALID_ARGUMENT",
        {
            "spec.policy_training.training.epochs": "must be at most 10,000, got 1e+308",
            "spec.policy_training.training.global_batch_size": "must be at most 1,000,000, got 2147483647",
            "spec.policy_training.training.lora.rank": "must be at most 16,384, got 1000000000",
            "spec.policy_training.method.params.beta": "must be at most 1,000, got 1e+300",
        },
    )
    assert not [key for key in gateway.stored() if key.startswith("jobs/")]


async def test_a_job_that_was_stored_before_is_listed_cancelled_and_resumed(settings: GatewaySettings) -> None:
    job_id = "job-" + "1" * 32
    async with running(settings) as gateway:
        ids = await make_material(gateway)
        spec = {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions), "training": {"epochs": 1e308}}
        job = Job(job_id, JobKind.SUPERVISED_TRAINING, JobState.PENDING, spec=spec, create_time=1.0)
        write_spec(gateway.store, job)
    async with running(settings) as gateway:
        (listed,) = (await gateway.ask(gateway.jobs.ListJobs, pb.ListJobsRequest())).jobs
        assert listed.spec.supervised_training.training.epochs == 1e308
        await gateway.ask(gateway.jobs.CancelJob, pb.CancelJobRequest(job_id=job_id))
        resumed = await gateway.ask(gateway.jobs.ResumeJob, pb.ResumeJobRequest(job_id=job_id))
        assert resumed.job.state == pb.JOB_STATE_PENDING
