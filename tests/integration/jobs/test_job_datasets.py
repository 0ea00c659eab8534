"""A job may leave a dataset, and another wait for it: past the gateway's check, over the queue, into a worker."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs.base import DatasetReference
from madpo.jobs.registry import KINDS, parse_spec
from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, connect
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.references import resolve_dataset_id
from madpo.storage.results import write_result
from madpo.types import DatasetKind, Job, JobKind, JobResult, JobState
from madpo_gateway.checks import references
from madpo_gateway.checks.references import Shelves
from madpo_gateway.checks.registry import all_dependencies, check_spec
from tests.integration.trainer.training_site import Site, job_id

LEAVER = JobKind.DATASET_CHECK
"""Stands for a kind that leaves pairs."""
TRAINING = {"max_steps": 1, "global_batch_size": 4, "max_tokens": 64}


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, make_toy_lm: Callable[..., Any], make_toy_tokenizer: Callable[..., Any]
) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"), make_toy_lm(), make_toy_tokenizer())


@pytest.fixture
async def queue(redis_url: str, redis_namespace: str) -> AsyncIterator[RedisJobQueue]:
    queue = connect(redis_url, namespace=redis_namespace, lease_s=30)
    yield queue
    await queue.close()


@pytest.fixture
def shelves(site: Site, queue: RedisJobQueue, tmp_path: Path) -> Shelves:
    return Shelves(site.store, DatasetStore(site.store), ModelStore(site.store, tmp_path / "cache"), queue)


@pytest.fixture
def leaves_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {LEAVER: replace(KINDS[LEAVER], leaves_dataset=frozenset({DatasetKind.PREFERENCE}))}
    monkeypatch.setattr(references, "KINDS", MappingProxyType({**KINDS, **changed}))


def training_on(job: Job, site: Site) -> Any:
    value = {"model": site.model, "dataset": job.job_id, "method": {"name": "dpo"}, "training": TRAINING}
    return parse_spec(JobKind.POLICY_TRAINING, value)


async def leaver(queue: RedisJobQueue, site: Site) -> Job:
    return await queue.create(JobRequest("leaver", LEAVER, {"dataset": site.pairs, "model": site.model}))


async def test_a_job_that_leaves_no_dataset_is_refused(queue: RedisJobQueue, shelves: Shelves, site: Site) -> None:
    job = await leaver(queue, site)
    spec = training_on(job, site)

    with pytest.raises(InvalidArgumentError) as caught:
        await check_spec(spec, depends_on=all_dependencies(spec, ()), shelves=shelves)

    (violation,) = caught.value.violations
    assert violation.field == "spec.policy_training.dataset.job_id"
    assert violation.description.endswith("is a dataset_check job; give one that leaves a list or preference dataset")


@pytest.mark.usefixtures("leaves_pairs")
async def test_a_training_waits_for_the_job_whose_dataset_it_names(
    queue: RedisJobQueue, shelves: Shelves, site: Site
) -> None:
    job = await leaver(queue, site)
    spec = training_on(job, site)
    depends_on = all_dependencies(spec, ())

    await check_spec(spec, depends_on=depends_on, shelves=shelves)
    request = JobRequest("training", JobKind.POLICY_TRAINING, spec.model_dump(mode="json"), depends_on=depends_on)
    training = await queue.create(request)

    assert (depends_on, training.state) == ((job.job_id,), JobState.WAITING)
    claim = await queue.claim(KINDS[LEAVER].queue, "worker", timeout_s=5)
    assert claim is not None
    done = await queue.succeed(claim, JobResult(dataset_id=site.pairs))
    assert done.result is not None
    assert done.result.dataset_id == site.pairs
    assert (await queue.get(training.job_id)).state is JobState.PENDING


@pytest.mark.usefixtures("leaves_pairs")
async def test_a_dataset_that_is_there_already_must_be_of_the_right_kind(
    queue: RedisJobQueue, shelves: Shelves, site: Site
) -> None:
    job = await leaver(queue, site)
    claim = await queue.claim(KINDS[LEAVER].queue, "worker", timeout_s=5)
    assert claim is not None
    await queue.succeed(claim, JobResult(dataset_id="dataset-" + "0" * 32))

    with pytest.raises(InvalidArgumentError, match=r"dataset\.job_id: there is no dataset dataset-0{32}"):
        await check_spec(training_on(job, site), depends_on=(job.job_id,), shelves=shelves)


def test_a_worker_trains_on_the_dataset_that_a_job_left(site: Site) -> None:
    write_result(site.store, job_id("sampled"), JobState.SUCCEEDED, JobResult(dataset_id=site.pairs), "")
    spec = {"dataset": {"job_id": job_id("sampled")}, "method": {"name": "dpo"}, "training": TRAINING}

    outcome = site.train("on-sampled", spec)

    assert outcome.result is not None
    assert outcome.result.summary["rows"]["training"]["rows"] == 20


def test_a_job_without_a_dataset_is_named(site: Site) -> None:
    write_result(site.store, job_id("model only"), JobState.SUCCEEDED, JobResult("model-1"), "")

    with pytest.raises(FailedPreconditionError, match="leaves no dataset: name a stored dataset"):
        resolve_dataset_id(DatasetReference(job_id=job_id("model only")), store=site.store)
