"""How many bytes a token may bring: datasets, models and imports, message by message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from madpo.errors import OverloadedError
from madpo.rpc.gateway.client import GatewayClient
from madpo.storage.access_tokens import create_token
from madpo.storage.local import LocalStore
from madpo.types import AccessToken, Caller, Role, TokenLimits
from madpo.v1 import dataset_service_pb2
from madpo_gateway.access import GatewayAccess
from tests.hub_mirror import COMMIT
from tests.integration.gateway.messages import chunk, digest, header, model_parts, safetensors
from tests.integration.gateway.service import TOKEN, Gateway, refusal
from tests.integration.gateway.test_dataset_import import FILES, importing
from tests.integration.gateway.test_tokens import make

ROW = b'{"prompt": "a", "completion": "%s"}\n' % (b"b" * 963)
UPLOAD = "1" * 32


def parts(rows: int, *, start: int = 0, **fields: Any) -> Iterator[Any]:
    """An upload in messages of one row, about 1,000 bytes each."""
    yield header(format="jsonl", **fields)
    yield from [chunk(ROW)] * (rows - start)
    yield digest(ROW * rows)


async def test_an_upload_beyond_what_is_left_is_refused_where_it_stands(gateway: Gateway) -> None:
    token = await make(gateway, "ana", upload_bytes_per_day=10_000)
    upload = gateway.datasets.UploadDataset
    await gateway.ask(upload, parts(4), token)
    refused = await refusal(gateway.ask(upload, parts(50, upload_id=UPLOAD), token))
    assert (refused.code, refused.message) == (
        "RESOURCE_EXHAUSTED",
        "the token 'ana' may bring 10000 bytes a day here, by uploads, imports and what is to be scored, and has: they"
        " come free again evenly over the day",
    )
    files = {"config.json": b"{}", "model.safetensors": safetensors(1)}
    assert (await refusal(gateway.ask(gateway.models.UploadModel, model_parts(files), token))).code == refused.code
    there = await gateway.ask(gateway.datasets.GetUpload, dataset_service_pb2.GetUploadRequest(upload_id=UPLOAD), token)
    assert 3 * len(ROW) <= there.received_bytes <= 7 * len(ROW)
    rest = parts(50, start=there.received_bytes // len(ROW), upload_id=UPLOAD, offset=there.received_bytes)
    stored = await gateway.ask(upload, rest)  # another may
    assert stored.dataset.rows == 50


async def test_bytes_come_free_again_and_what_an_import_brought_too_much_is_owed(tmp_path: Path) -> None:
    now, store = [0.0], LocalStore(tmp_path)
    secret = create_token(
        store, AccessToken("ana", Role.SUBMIT, create_time=1.0, limits=TokenLimits(upload_bytes_per_day=86_400))
    )
    guard = GatewayAccess(
        store,
        operator_token=TOKEN,
        failures=Counter("failures", "of this test", registry=CollectorRegistry()),
        clock=lambda: now[0],
    )
    ana = await guard.identify(secret)
    guard.take_bytes(ana, 86_400)
    with pytest.raises(OverloadedError, match="may bring 86400 bytes"):
        guard.take_bytes(ana, 0)
    now[0] = 100.0
    guard.take_bytes(ana, 1_100)
    now[0] = 1_100.0
    with pytest.raises(OverloadedError):
        guard.take_bytes(ana, 0)
    now[0] = 1_102.0
    guard.take_bytes(ana, 1)
    guard.take_bytes(Caller("operator", Role.ADMIN), 10**15)


@pytest.mark.data
async def test_imports_count(tmp_path: Path, redis_url: str, redis_namespace: str) -> None:
    async with importing(tmp_path, redis_url, redis_namespace, FILES) as (client, _):
        limits = TokenLimits(upload_bytes_per_day=100)
        _, secret = await client.create_token("ana", role=Role.SUBMIT, lifetime_s=None, limits=limits)
        async with GatewayClient(client.target, token=secret) as ana:
            await ana.import_dataset("somebody/pairs", revision=COMMIT, files=["data/train-*.parquet"])
            with pytest.raises(OverloadedError, match="may bring 100 bytes"):
                await ana.import_dataset("somebody/pairs", revision=COMMIT, files=["data/test-*.parquet"])
