"""What retention removes, in which order, and what it leaves alone."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from madpo.storage import bundle, keys
from madpo.storage.checkpoints import list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.types import AuditRecord, JobResult
from madpo.v1 import dataset_service_pb2, job_service_pb2
from madpo.v1 import retention_service_pb2 as pb
from madpo_gateway.deletion import Deletion
from madpo_gateway.reconcile import Reconciler
from madpo_gateway.retention import Retention
from madpo_gateway.retention_policy import DAY_S, RetentionPolicy
from tests.integration.gateway.service import COMPLETIONS, REWARD_CONFIG, Gateway, ref, refusal

OLD = 100 * DAY_S
"""Everything of these tests is so old once retention looks at it."""


async def unnoted(record: AuditRecord) -> None:
    """The audit log stays as the calls of the test left it."""


def retention(
    gateway: Gateway,
    policy: Mapping[str, Any],
    *,
    later_s: float = OLD,
    note: Callable[[AuditRecord], Awaitable[None]] = unnoted,
) -> Retention:
    datasets, models = DatasetStore(gateway.store), ModelStore(gateway.store, gateway.settings.scratch)
    reconciler = Reconciler(store=gateway.store, queue=gateway.queue)
    return Retention(
        RetentionPolicy.model_validate(policy),
        store=gateway.store,
        datasets=datasets,
        models=models,
        queue=gateway.queue,
        reconciler=reconciler,
        deletion=Deletion(
            store=gateway.store, datasets=datasets, models=models, queue=gateway.queue, reconciler=reconciler
        ),
        note=note,
        clock=lambda: time.time() + later_s,
    )


async def apply(
    gateway: Gateway, policy: Mapping[str, Any], *, dry_run: bool = False, later_s: float = OLD
) -> list[str]:
    """Kinds and ids of what was removed."""
    applied = retention(gateway, policy, later_s=later_s).apply(dry_run=dry_run)
    return [f"{removal.kind} {removal.thing_id}" async for removal in applied]


class Chain:
    """A dataset, a base, a job that made a model of them, and one that trains that further."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def make(self) -> "Chain":
        gateway = self.gateway
        self.dataset = (await gateway.upload_dataset(COMPLETIONS)).dataset.dataset_id
        self.base = (await gateway.upload_model()).model.model_id
        self.made = (await gateway.upload_model(weights=2)).model.model_id
        self.unused = (await gateway.upload_model(REWARD_CONFIG)).model.model_id
        self.first = await self._job("first", {"model_id": self.base})
        await self._succeed(self.first, self.made)
        self.second = await self._job("second", {"job_id": self.first})
        return self

    async def end(self) -> None:
        await self.gateway.ask(self.gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=self.second))

    async def _job(self, request_id: str, model: Mapping[str, str]) -> str:
        spec = {"model": model, "dataset": ref(self.dataset)}
        return str((await self.gateway.create({"supervised_training": spec}, request_id)).job_id)

    async def _succeed(self, job_id: str, model_id: str) -> None:
        claim = await self.gateway.queue.claim("train", "a-worker", timeout_s=5)
        assert claim is not None
        assert claim.job.job_id == job_id
        for step in (1, 2, 3):
            directory = self.gateway.settings.scratch / f"{job_id}@{step}"
            directory.mkdir()
            (directory / "model.safetensors").write_bytes(b"x" * step)
            prefix = keys.checkpoint(job_id, step=step, attempt=1)
            bundle.publish(self.gateway.store, prefix, directory, metadata={})
        await self.gateway.queue.succeed(claim, JobResult(model_id))


@pytest.fixture
async def chain(gateway: Gateway) -> Chain:
    return await Chain(gateway).make()


ALL = {kind: {"days": 30} for kind in ("jobs", "models", "datasets", "checkpoints")}


async def test_without_rules_everything_stays(gateway: Gateway, chain: Chain) -> None:
    await chain.end()
    assert await apply(gateway, {}) == []


async def test_what_an_unfinished_job_needs_stays_with_the_job_that_made_it(gateway: Gateway, chain: Chain) -> None:
    assert await apply(gateway, ALL) == [f"model {chain.unused}"]


async def test_jobs_go_first_and_then_what_they_spoke_of(gateway: Gateway, chain: Chain) -> None:
    await chain.end()
    expected = [f"job {chain.second}", f"job {chain.first}"]
    things = {f"model {each}" for each in (chain.unused, chain.made, chain.base)} | {f"dataset {chain.dataset}"}

    would = await apply(gateway, ALL, dry_run=True)
    assert would[:2] == expected
    assert set(would[2:]) == things
    assert await apply(gateway, ALL, later_s=29 * DAY_S) == []
    assert await apply(gateway, ALL) == would
    assert gateway.stored() == []
    assert await apply(gateway, ALL) == []


async def test_models_stay_where_a_kept_job_made_or_used_them(gateway: Gateway, chain: Chain) -> None:
    await chain.end()

    assert await apply(gateway, {"models": {"days": 1}, "datasets": {"days": 1}}) == [f"model {chain.unused}"]


async def test_the_newest_stay_whatever_their_age(gateway: Gateway, chain: Chain) -> None:
    await chain.end()

    assert await apply(gateway, {"jobs": {"days": 1, "keep_last": 2}}, dry_run=True) == []
    # The second is kept, so what it refers to is as well.
    assert await apply(gateway, {"jobs": {"days": 1, "keep_last": 1}}, dry_run=True) == []
    assert await apply(gateway, {"models": {"days": 1, "keep_last": 3}}, dry_run=True) == []


async def test_what_is_pinned_stays_with_what_it_refers_to(gateway: Gateway, chain: Chain) -> None:
    await chain.end()
    for thing in (chain.first, chain.unused):
        await gateway.ask(gateway.retention.Pin, pb.PinRequest(thing_id=thing))

    assert await apply(gateway, ALL, dry_run=True) == [f"job {chain.second}"]
    pins = await gateway.ask(gateway.retention.ListPins, pb.ListPinsRequest())
    assert list(pins.thing_ids) == sorted([chain.first, chain.unused])
    await gateway.ask(gateway.retention.Unpin, pb.UnpinRequest(thing_id=chain.unused))
    assert await apply(gateway, ALL) == [f"job {chain.second}", f"model {chain.unused}"]


async def test_of_a_job_that_is_over_the_newest_checkpoints_stay(gateway: Gateway, chain: Chain) -> None:
    policy = {"checkpoints": {"days": 1, "keep_last": 2}}
    assert await apply(gateway, policy) == [], "the second job reads it"
    await chain.end()

    assert await apply(gateway, policy) == [f"checkpoint {chain.first}@1"]
    assert await apply(gateway, {"checkpoints": {"days": 1, "keep_last": 0}}) == [f"checkpoint {chain.first}@2"]
    left = [info.key for info in gateway.store.list(f"{keys.checkpoints(chain.first)}/")]
    assert all("step-00000003" in key for key in left)
    assert len(left) == 2


async def test_what_can_be_made_again_goes_while_no_job_may_read_it(gateway: Gateway, chain: Chain) -> None:
    for key in (
        f"{keys.tokens(chain.dataset, 'd' * 8)}/manifest.json",
        f"{keys.reference_logps_chunk('e' * 8, 0)}/manifest.json",
    ):
        gateway.store.put(key, b"{}")
    policy = {"derived": {"days": 1}}
    assert await apply(gateway, policy) == []
    await chain.end()

    assert await apply(gateway, policy, later_s=0) == []
    assert await apply(gateway, policy) == [
        f"tokens tokens/{chain.dataset}/{'d' * 8}",
        f"reference_logps reference_logps/{'e' * 8}",
    ]


async def test_days_of_the_audit_log_go_whole(gateway: Gateway, chain: Chain) -> None:
    (removed,) = await apply(gateway, {"audit": {"days": 60}})

    assert removed == f"audit {time.strftime('%Y-%m-%d', time.gmtime())}"
    assert list(gateway.store.list(f"{keys.AUDIT}/")) == []


async def test_what_becomes_needed_while_it_is_removed_stays(
    gateway: Gateway, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is created between the look at all jobs and the removal."""
    await chain.end()
    removing = retention(gateway, {"models": {"days": 1}})
    delete = removing._deletion.model
    spec = {"model": {"model_id": chain.unused}, "dataset": ref(await _pairs(gateway))}

    async def after_a_job_was_made(model_id: str, **fields: Any) -> None:
        await gateway.create({"reward_training": spec}, "late")
        await delete(model_id, **fields)

    monkeypatch.setattr(removing._deletion, "model", after_a_job_was_made)
    assert [removal async for removal in removing.apply(dry_run=False)] == []
    assert ModelStore(gateway.store, gateway.settings.scratch).get(chain.unused)


async def test_it_runs_by_call_and_says_what_it_removed(gateway: Gateway) -> None:
    assert await gateway.collect(gateway.retention.ApplyRetention, pb.ApplyRetentionRequest()) == []
    refused = await refusal(gateway.ask(gateway.retention.Pin, pb.PinRequest(thing_id="job-" + "1" * 32)))
    assert refused.code == "NOT_FOUND"
    refused = await refusal(gateway.ask(gateway.retention.Pin, pb.PinRequest(thing_id="../x")))
    assert (refused.code, list(refused.violations)) == ("INVALID_ARGUMENT", ["thing_id"])


async def _pairs(gateway: Gateway) -> str:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]
    answer: dataset_service_pb2.UploadDatasetResponse = await gateway.upload_dataset(rows)
    return str(answer.dataset.dataset_id)


async def test_what_uploads_left_that_were_given_up_goes_after_a_day_whatever_the_rules(
    gateway: Gateway, chain: Chain
) -> None:
    prefixes = [keys.model("model-" + "1" * 32), keys.dataset("dataset-" + "2" * 32)]
    for prefix in prefixes:
        gateway.store.put(f"{prefix}/part", b"123")
    before = gateway.stored()

    assert await apply(gateway, {}, later_s=0.9 * DAY_S) == []
    assert await apply(gateway, {"unfinished": {}}) == []
    assert await apply(gateway, {}, dry_run=True) == [f"unfinished {prefix}" for prefix in prefixes]
    assert set(before) <= set(gateway.stored())
    assert await apply(gateway, {}) == [f"unfinished {prefix}" for prefix in prefixes]
    assert set(before) - set(gateway.stored()) == {f"{prefix}/part" for prefix in prefixes}
    assert await apply(gateway, {}) == []


async def test_what_attempts_left_half_written_goes_once_their_job_is_over(gateway: Gateway, chain: Chain) -> None:
    left = [
        keys.reference_logps_chunk("e" * 8, 0),
        *(
            prefix
            for job in (chain.first, chain.second)
            for prefix in (keys.checkpoint(job, step=4, attempt=2), keys.artifacts(job, attempt=2))
        ),
    ]
    for prefix in left:
        gateway.store.put(f"{prefix}/part", b"123")
    grown = f"{keys.generations_by(chain.second, engine='e')}/part"
    ids = keys.tokens(chain.dataset, "d" * 8)
    for key in (grown, f"{ids}/part"):
        gateway.store.put(key, b"123")
    of_first = {f"unfinished {prefix}" for prefix in left if chain.first in prefix}

    assert await apply(gateway, {}, later_s=0.9 * DAY_S) == []
    assert set(await apply(gateway, {})) == {*of_first, f"unfinished {ids}"}, "the second job may go on"
    await chain.end()
    rest = {f"unfinished {prefix}" for prefix in left} - of_first
    assert await apply(gateway, {}, later_s=0.9 * DAY_S) == []
    assert set(await apply(gateway, {}, dry_run=True)) == rest
    assert set(await apply(gateway, {})) == rest
    assert [key for key in gateway.stored() if key.endswith("/part")] == [grown]
    assert len(list_checkpoints(gateway.store, chain.first)) == 3


def test_no_rule_reaches_for_what_may_be_an_upload_that_goes_on() -> None:
    with pytest.raises(ValueError, match=r"unfinished\.days must be 1 or more"):
        RetentionPolicy.model_validate({"unfinished": {"days": 0.5}})
