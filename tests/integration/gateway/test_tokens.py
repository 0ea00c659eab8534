"""Named tokens: what a role allows, when a token ends, what it may ask for, and what is noted of its calls."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter

from madpo.errors import UnauthenticatedError, UnavailableError
from madpo.rpc.channel import call_metadata
from madpo.storage import keys
from madpo.v1 import access_service_pb2 as pb
from madpo.v1 import job_service_pb2
from madpo_gateway import access
from madpo_gateway.access import GatewayAccess, role_of
from madpo_gateway.service import CONTRACTS
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import COMPLETIONS, TOKEN, Gateway, eventually, ref, refusal, running
from tests.integration.gateway.test_access import outcome

ROLES = {"read": pb.ROLE_READ, "submit": pb.ROLE_SUBMIT, "admin": pb.ROLE_ADMIN}


async def make(gateway: Gateway, name: str, role: str = "submit", **limits: int) -> str:
    """The secret of a new token."""
    request = pb.CreateTokenRequest(name=name, role=ROLES[role], limits=pb.TokenLimits(**limits))
    return str((await gateway.ask(gateway.access.CreateToken, request)).secret)


async def _to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
        pass


async def records(gateway: Gateway, **asked: Any) -> list[pb.AuditRecord]:
    answer = await gateway.ask(gateway.access.ListAuditRecords, pb.ListAuditRecordsRequest(page_size=200, **asked))
    return list(answer.records)


@pytest.mark.promise("H3")
async def test_a_role_opens_what_it_says_and_nothing_else(gateway: Gateway, figure: Callable[[str], None]) -> None:
    tokens = {role: await make(gateway, role, role) for role in ROLES}
    opened: dict[str, set[str]] = {role: set() for role in ROLES}
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for role, token in tokens.items():
                    code = await outcome(gateway.channel, service.full_name, method, token=token)
                    if code != "PERMISSION_DENIED":
                        opened[role].add(method.name)

    every = {
        method.name for each in CONTRACTS for it in each.DESCRIPTOR.services_by_name.values() for method in it.methods
    }
    assert opened["admin"] == every
    for_admins = {"CreateToken", "ListTokens", "RevokeToken", "ListAuditRecords", "ApplyRetention", "CheckStore"}
    assert opened["submit"] == every - for_admins
    assert opened["submit"] - opened["read"] == access.SUBMIT_METHODS | access.COMPUTE_METHODS
    changing = ("Upload", "Import", "Create", "Delete", "Cancel", "Resume", "Revoke")
    assert not [name for name in opened["read"] if name.startswith(changing)]
    figure(f"{len(every)} calls, {len(ROLES)} roles")


def test_every_name_in_the_table_is_a_method() -> None:
    every = {
        method.name for each in CONTRACTS for it in each.DESCRIPTOR.services_by_name.values() for method in it.methods
    }

    assert access.READ_METHODS - every == {"ServerReflectionInfo"}
    assert every >= access.SUBMIT_METHODS | access.COMPUTE_METHODS
    assert role_of("/madpo.v1.NewService/WhatNobodyThoughtOf").value == "admin"


async def test_what_a_caller_is_told(gateway: Gateway) -> None:
    token = await make(gateway, "ana", "read")

    caller = await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token)
    assert (caller.name, caller.role) == ("ana", pb.ROLE_READ)
    caller = await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest())
    assert (caller.name, caller.role) == ("operator", pb.ROLE_ADMIN)
    refused = await refusal(gateway.ask(gateway.jobs.CreateJob, job_service_pb2.CreateJobRequest(), token))
    assert refused.message == (
        "the token 'ana' has the role read; JobService/CreateJob is for submit"
        " (an admin makes tokens with `madpo token create`)"
    )


async def test_a_revoked_token_ends_calls_and_streams_and_its_name_is_spent(gateway: Gateway) -> None:
    token = await make(gateway, "ana")
    job_id = await gateway.ready_job()
    watch = gateway.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id), metadata=call_metadata(token))
    await watch.read()

    revoked = await gateway.ask(gateway.access.RevokeToken, pb.RevokeTokenRequest(name="ana"))
    again = await gateway.ask(gateway.access.RevokeToken, pb.RevokeTokenRequest(name="ana"))
    assert revoked.token.HasField("revoke_time")
    assert revoked == again

    refused = await refusal(gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token))
    assert (refused.code, refused.message.partition(" (")[0]) == ("UNAUTHENTICATED", "the token 'ana' was revoked")
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    refused = await refusal(_to_the_end(watch))
    assert (refused.code, refused.message.partition(" (")[0]) == ("UNAUTHENTICATED", "the token 'ana' was revoked")
    refused = await refusal(make(gateway, "ana"))
    assert refused.code == "ALREADY_EXISTS"


async def test_a_token_of_another_gateway_is_known_at_once_and_revoked_within_seconds(
    gateway: Gateway, settings: GatewaySettings, tmp_path: Path
) -> None:
    async with running(settings.model_copy(update={"scratch": tmp_path / "other"})) as other:
        token = await make(other, "ana")
        await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token)
        await other.ask(other.access.RevokeToken, pb.RevokeTokenRequest(name="ana"))

        async def is_refused() -> bool:
            try:
                await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        async with asyncio.timeout(20):
            await eventually(is_refused)


async def test_a_token_expires(gateway: Gateway) -> None:
    request = pb.CreateTokenRequest(name="short", role=pb.ROLE_READ)
    request.lifetime.FromMilliseconds(1)
    token = (await gateway.ask(gateway.access.CreateToken, request)).secret

    refused = await refusal(gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token))
    assert (refused.code, refused.message.partition(" (")[0]) == ("UNAUTHENTICATED", "the token 'short' has expired")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "Ana"}, "name"),
        ({"name": "operator"}, "name"),
        ({"role": pb.ROLE_UNSPECIFIED}, "role"),
        ({"role": 9}, "role"),
        ({"limits": {"unfinished_jobs": 0}}, "limits.unfinished_jobs"),
        ({"limits": {"calls_per_minute": -1}}, "limits.calls_per_minute"),
        ({"lifetime": {"seconds": 0}}, "lifetime"),
        ({"lifetime": {"seconds": -5}}, "lifetime"),
    ],
)
async def test_what_is_no_token_is_refused(gateway: Gateway, fields: dict[str, Any], field: str) -> None:
    request = pb.CreateTokenRequest(**{"name": "ana", "role": pb.ROLE_READ, **fields})

    refused = await refusal(gateway.ask(gateway.access.CreateToken, request))
    assert (refused.code, list(refused.violations)) == ("INVALID_ARGUMENT", [field])
    assert not [key for key in gateway.stored() if key.startswith(keys.ACCESS_TOKENS)]


async def test_a_caller_has_no_more_unfinished_jobs_than_its_token_allows(gateway: Gateway) -> None:
    token = await make(gateway, "ana", unfinished_jobs=2)
    dataset = (await gateway.upload_dataset(COMPLETIONS)).dataset
    model = (await gateway.upload_model()).model
    spec = job_service_pb2.JobSpec()
    spec.supervised_training.model.model_id = model.model_id
    spec.supervised_training.dataset.CopyFrom(job_service_pb2.DatasetReference(**ref(dataset.dataset_id)))

    async def create(request_id: str, by: str) -> Any:
        request = job_service_pb2.CreateJobRequest(request_id=request_id, spec=spec)
        return (await gateway.ask(gateway.jobs.CreateJob, request, by)).job

    await create("others", TOKEN)
    first, second = [await create(request_id, token) for request_id in ("first", "second")]
    assert (first.submitted_by, (await create("others", TOKEN)).submitted_by) == ("ana", "operator")
    refused = await refusal(create("third", token))
    assert (refused.code, refused.message) == (
        "RESOURCE_EXHAUSTED",
        "the token 'ana' may have 2 unfinished jobs and has 2: wait for one to end, or cancel it",
    )
    assert (await create("second", token)).job_id == second.job_id
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=first.job_id))
    answers = await asyncio.gather(*(create(f"at-once-{n}", token) for n in range(6)), return_exceptions=True)
    assert len([each for each in answers if not isinstance(each, Exception)]) == 1
    resume = job_service_pb2.ResumeJobRequest(job_id=first.job_id)
    refused = await refusal(gateway.ask(gateway.jobs.ResumeJob, resume, token))
    assert (refused.code, "may have 2 unfinished jobs" in refused.message) == ("RESOURCE_EXHAUSTED", True)
    assert len([key for key in gateway.stored() if key.endswith("/spec.json")]) == 4  # nothing of those refused
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=second.job_id))
    assert (await gateway.ask(gateway.jobs.ResumeJob, resume, token)).job.job_id == first.job_id


async def test_a_caller_makes_no_more_calls_than_its_token_allows(gateway: Gateway) -> None:
    token = await make(gateway, "ana", calls_per_minute=3)

    for _ in range(3):
        await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token)
    refused = await refusal(gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest(), token))
    assert (refused.code, refused.message.partition(";")[0]) == (
        "RESOURCE_EXHAUSTED",
        "the token 'ana' may make 3 calls a minute",
    )
    await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest())


@pytest.mark.promise("H4")
async def test_what_changes_something_is_noted_with_who_did_it_and_secrets_are_not(gateway: Gateway) -> None:
    reader, writer = await make(gateway, "reader", "read"), await make(gateway, "writer")
    job_id = await gateway.ready_job()
    cancel = job_service_pb2.CancelJobRequest(job_id=job_id)
    await refusal(gateway.ask(gateway.jobs.CancelJob, cancel, reader))
    await gateway.ask(gateway.jobs.CancelJob, cancel, writer)
    await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id), writer)

    await records(gateway)  # Reading it is noted nowhere.
    noted = [(record.caller, record.method, record.code) for record in await records(gateway)]
    assert noted == [
        ("operator", "AccessService/CreateToken", "OK"),
        ("operator", "AccessService/CreateToken", "OK"),
        ("operator", "DatasetService/UploadDataset", "OK"),
        ("operator", "ModelService/UploadModel", "OK"),
        ("operator", "JobService/CreateJob", "OK"),
        ("reader", "JobService/CancelJob", "PERMISSION_DENIED"),
        ("writer", "JobService/CancelJob", "OK"),
    ]
    by_writer = await records(gateway, caller="writer")
    assert [f"job_id={job_id}" in record.subjects for record in by_writer] == [True]
    assert by_writer[0].peer.startswith("ipv4:127.0.0.1")
    kept = b"".join(
        gateway.store.get(info.key) for prefix in ("access/", "audit/") for info in gateway.store.list(prefix)
    )
    assert not [secret for secret in (reader, writer, TOKEN) if secret.encode() in kept]


async def test_the_audit_log_is_read_in_pages_from_a_time_on(gateway: Gateway) -> None:
    for name in ("a", "b", "c", "d"):
        await make(gateway, name)
    ask = pb.ListAuditRecordsRequest(page_size=3)
    first = await gateway.ask(gateway.access.ListAuditRecords, ask)
    ask.page_token = first.next_page_token
    second = await gateway.ask(gateway.access.ListAuditRecords, ask)

    subjects = [subject for page in (first, second) for record in page.records for subject in record.subjects]
    assert subjects == ["name=a", "name=b", "name=c", "name=d"]
    later = await records(gateway, since_time=first.records[2].time, caller="operator")
    assert [subject for record in later for subject in record.subjects] == ["name=c", "name=d"]


def make_guard(gateway: Gateway, **options: Any) -> GatewayAccess:
    """As another gateway over the same store has it."""
    failures = Counter("failures", "of this test", registry=CollectorRegistry())
    return GatewayAccess(gateway.store, operator_token=TOKEN, failures=failures, **options)


async def test_a_token_is_known_at_once_where_tokens_have_just_been_read(gateway: Gateway) -> None:
    guard = make_guard(gateway)
    for name in ("ana", "ben"):
        with pytest.raises(UnauthenticatedError):
            await guard.identify("a guess")

        assert (await guard.identify(await make(gateway, name))).name == name


async def test_however_many_guess_tokens_are_read_once_for_all(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, reads, read = make_guard(gateway), [], gateway.store.list

    def count(prefix: str) -> Any:
        reads.append(prefix)
        return read(prefix)

    monkeypatch.setattr(gateway.store, "list", count)

    guesses = await asyncio.gather(*(guard.identify(f"guess {n}") for n in range(100)), return_exceptions=True)

    assert {type(refused) for refused in guesses} == {UnauthenticatedError}
    assert len(reads) <= 2


async def test_without_the_store_known_tokens_hold_for_a_while(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await make(gateway, "ana")
    now = [0.0]
    guard = make_guard(gateway, clock=lambda: now[0])
    assert (await guard.identify(secret)).name == "ana"

    def away(_: str) -> Any:
        raise UnavailableError("away")

    monkeypatch.setattr(gateway.store, "list", away)
    now[0] = 59.0
    assert (await guard.identify(secret)).name == "ana"
    now[0] = 61.0
    with pytest.raises(UnavailableError, match="not known which tokens are valid"):
        await guard.identify(secret)
    assert (await guard.identify(TOKEN)).name == "operator"
