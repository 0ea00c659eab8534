"""Calls that go on while their token ends, or while the store that knows of it does not answer."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter

from madpo.errors import UnauthenticatedError, UnavailableError
from madpo.ports import ObjectInfo
from madpo.rpc.channel import call_metadata
from madpo.storage.access_tokens import create_token, revoke_token
from madpo.storage.local import LocalStore
from madpo.types import AccessToken, Caller, Role
from madpo.v1 import access_service_pb2 as pb
from madpo.v1 import dataset_service_pb2, job_service_pb2, model_service_pb2
from madpo_gateway.access import GatewayAccess
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import TOKEN, Gateway, eventually, refusal, running
from tests.integration.gateway.test_tokens import make


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at again twenty times a second."""
    monkeypatch.setattr(GatewayAccess, "recheck_s", 0.05)


async def _then_silent(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message
    await asyncio.Event().wait()


def uploads(gateway: Gateway, token: str) -> list[Any]:
    """One of each sort, begun, of which nothing more is heard."""
    dataset = dataset_service_pb2.UploadDatasetRequest(header=dataset_service_pb2.UploadDatasetHeader(format="jsonl"))
    rows = dataset_service_pb2.UploadDatasetRequest(chunk=b"{")
    model = model_service_pb2.UploadModelRequest(header=model_service_pb2.UploadModelHeader(file_count=2))
    file = model_service_pb2.UploadModelRequest(file=model_service_pb2.ModelFile(path="config.json", size_bytes=9))
    return [
        gateway.datasets.UploadDataset(_then_silent(dataset, rows), metadata=call_metadata(token)),
        gateway.models.UploadModel(_then_silent(model, file), metadata=call_metadata(token)),
    ]


async def watch(gateway: Gateway, token: str) -> Any:
    """A watch that has told all there is to tell."""
    request = job_service_pb2.WatchJobRequest(job_id=await gateway.ready_job())
    call = gateway.jobs.WatchJob(request, metadata=call_metadata(token))
    await call.read()
    return call


async def ended(call: Any) -> str:
    return (await refusal(call)).message.partition(" (")[0]


async def test_a_revoked_token_ends_silent_calls_of_every_gateway(
    gateway: Gateway, settings: GatewaySettings, tmp_path: Path
) -> None:
    token = await make(gateway, "ana")
    others = await watch(gateway, TOKEN)
    async with running(settings.model_copy(update={"scratch": tmp_path / "other"})) as other:
        calls = [each for at in (gateway, other) for each in uploads(at, token)]
        watches = [await watch(at, token) for at in (gateway, other)]
        await eventually(lambda: len(list(settings.uploads.rglob("config.json"))) == 1)
        await gateway.ask(gateway.access.RevokeToken, pb.RevokeTokenRequest(name="ana"))
        async with asyncio.timeout(60):
            messages = [await ended(call) for call in calls]
            messages += [await ended(_read(call)) for call in watches]
        assert set(messages) == {"the token 'ana' was revoked"}
        assert not others.done()
        await eventually(lambda: not list(settings.uploads.iterdir()))
    assert await gateway.ask(gateway.access.GetCaller, pb.GetCallerRequest())


async def test_a_token_that_expires_ends_its_silent_calls(gateway: Gateway) -> None:
    request = pb.CreateTokenRequest(name="short", role=pb.ROLE_SUBMIT)
    request.lifetime.FromMilliseconds(1500)
    token = (await gateway.ask(gateway.access.CreateToken, request)).secret
    calls = uploads(gateway, token)
    async with asyncio.timeout(60):
        assert {await ended(call) for call in calls} == {"the token 'short' has expired"}


async def _read(call: Any) -> None:
    assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]


class HangingStore(LocalStore):
    """Lists nothing until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answers = threading.Event()
        self.answers.set()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        assert self.answers.wait(60)
        return super().list(prefix)


async def test_calls_of_named_tokens_do_not_wait_for_a_store_that_hangs(tmp_path: Path) -> None:
    store, now = HangingStore(tmp_path), [0.0]
    ana, bob = (create_token(store, AccessToken(name, Role.SUBMIT, create_time=1.0)) for name in ("ana", "bob"))
    guard = GatewayAccess(
        store,
        operator_token=TOKEN,
        failures=Counter("failures", "of this test", registry=CollectorRegistry()),
        patience_s=0.01,
        clock=lambda: now[0],
    )
    await eventually(lambda: _is_known(guard, ana))
    late = create_token(store, AccessToken("late", Role.READ, create_time=1.0))
    revoke_token(store, "bob")
    store.answers.clear()
    try:
        async with asyncio.timeout(30):
            now[0] = 59.0
            callers = await asyncio.gather(*(guard.identify(ana) for _ in range(50)))
            assert {caller.name for caller in callers} == {"ana"}
            with pytest.raises(UnavailableError, match="whether this token is valid"):
                await guard.identify(late)
            now[0] = 61.0
            with pytest.raises(UnavailableError, match="which tokens are valid"):
                await guard.identify(ana)
            with pytest.raises(UnavailableError, match="which tokens are valid"):
                guard.check(Caller("ana", Role.SUBMIT), "/madpo.v1.JobService/WatchJob")
            await guard.recheck()
            assert (await guard.identify(TOKEN)).name == "operator"
    finally:
        store.answers.set()
    await eventually(lambda: _is_known(guard, late))
    with pytest.raises(UnauthenticatedError, match="'bob' was revoked"):
        await guard.identify(bob)


async def _is_known(guard: GatewayAccess, secret: str) -> bool:
    try:
        return bool((await guard.identify(secret)).name)
    except UnavailableError:
        return False
