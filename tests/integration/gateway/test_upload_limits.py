"""Every limit on what a dataset may be is a setting of the gateway, and is named where it is met."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.errors import InvalidArgumentError
from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.server import RunningServer
from madpo.storage.open import open_store
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import stored_keys

pytestmark = pytest.mark.data

TOKEN = "a-token-of-this-test"
RANKED = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [4, 3, 2, 1]}


def line(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": [str(number) * 100 for number in range(100)]}), file, use_dictionary=False)
    return file.getvalue()


@pytest.mark.parametrize(
    ("setting", "value", "name", "make"),
    [
        ("max_upload_bytes", 20, "a.jsonl", lambda: line(prompt="more than twenty bytes")),
        ("max_decompressed_bytes", 9000, "a.jsonl.gz", lambda: gzip.compress(line(prompt="a") * 1000)),
        ("max_compression_ratio", 2, "a.jsonl.gz", lambda: gzip.compress(line(prompt="a" * 9999) * 1000)),
        ("max_rows", 5, "a.jsonl", lambda: line(prompt="a") * 6),
        ("max_rows", 5, "lists.jsonl", lambda: line(**RANKED)),
        ("max_row_bytes", 50, "a.jsonl", lambda: line(prompt="a" * 50)),
        ("max_field_bytes", 50, "a.jsonl", lambda: line(prompt="a" * 51)),
        ("max_columns", 2, "a.csv", lambda: b"prompt,b,c\n1,2,3\n"),
        ("max_depth", 2, "a.json", lambda: b'[{"prompt": "a", "x": [[[1]]]}]'),
        ("max_page_bytes", 5000, "a.parquet", parquet),
    ],
)
async def test_a_limit_is_a_setting_and_is_named_where_it_is_met(
    tmp_path: Path,
    redis_url: str,
    redis_namespace: str,
    setting: str,
    value: int,
    name: str,
    make: Callable[[], bytes],
) -> None:
    settings = GatewaySettings(
        store_url=f"file://{tmp_path}/store",
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        token=SecretStr(TOKEN),
        scratch=tmp_path / "scratch",
        grace_s=0,
        **{setting: value},
    )
    path = tmp_path / name
    path.write_bytes(make())
    registry = CollectorRegistry()
    server = RunningServer(GatewayService(settings, registry), settings, token=TOKEN, registry=registry)
    async with server, GatewayClient(f"127.0.0.1:{server.port}", token=TOKEN) as client:
        with pytest.raises(InvalidArgumentError, match=setting) as caught:
            await client.upload_dataset([path], display_name="", lists="pairs")

    assert str(value) in str(caught.value)
    assert [path for path in settings.scratch.rglob("*") if path.is_file()] == []
    assert stored_keys(open_store(settings)) == []


def test_the_limits_are_those_of_the_settings(tmp_path: Path) -> None:
    settings = GatewaySettings(
        store_url=f"file://{tmp_path}", redis_url=SecretStr("redis://a"), token=SecretStr(TOKEN), scratch=tmp_path
    )

    assert settings.read_limits == type(settings.read_limits)()
