"""Datasets from the hub, at one commit, through a real gateway; the hub is a mirror on loopback."""

import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.rpc.gateway.client import GatewayClient
from madpo.rpc.server import RunningServer
from madpo.storage.open import open_store
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from tests.hub_mirror import COMMIT, hub
from tests.integration.gateway.service import stored_keys

pytestmark = pytest.mark.data

TOKEN = "a-token-of-this-test"
PAIRS = [{"prompt": f"{number}+1?", "chosen": str(number + 1), "rejected": "no"} for number in range(6)]


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


FILES = {
    "README.md": b"# pairs",
    "data/train-00000-of-00002.parquet": parquet(PAIRS[:2]),
    "data/train-00001-of-00002.parquet": parquet(PAIRS[2:4]),
    "data/test-00000-of-00001.parquet": parquet(PAIRS[4:]),
    "code/loader.py": b"import os",
    "../outside.jsonl": b"{}",
}


@asynccontextmanager
async def importing(
    tmp_path: Path, redis_url: str, redis_namespace: str, files: Mapping[str, bytes], **given: Any
) -> AsyncIterator[tuple[GatewayClient, GatewaySettings]]:
    """A client of a gateway whose hub has these files in `somebody/pairs`."""
    pytest.importorskip("huggingface_hub")
    with hub(files, repo="somebody/pairs", kind="datasets") as url:
        settings = GatewaySettings(
            store_url=f"file://{tmp_path}/store",
            redis_url=SecretStr(redis_url),
            redis_namespace=redis_namespace,
            token=SecretStr(TOKEN),
            scratch=tmp_path / "scratch",
            hub_endpoint=url,
            grace_s=0,
            **given,
        )
        registry = CollectorRegistry()
        server = RunningServer(GatewayService(settings, registry), settings, token=TOKEN, registry=registry)
        async with server, GatewayClient(f"127.0.0.1:{server.port}", token=TOKEN) as client:
            yield client, settings
            assert list(settings.uploads.rglob("*")) == []


async def test_the_files_that_a_pattern_names_become_a_dataset(
    tmp_path: Path, redis_url: str, redis_namespace: str
) -> None:
    uploaded = tmp_path / "pairs.jsonl"
    uploaded.write_text("\n".join(map(json.dumps, PAIRS[:4])))
    async with importing(tmp_path, redis_url, redis_namespace, FILES) as (client, _):
        dataset, created, _ = await client.import_dataset(
            "somebody/pairs", revision=COMMIT, files=["data/train-*.parquet"]
        )
        rows = await client.read_dataset_rows(dataset.dataset_id, [1, 4])
        same, created_again = await client.upload_dataset([uploaded], display_name="")

    assert (dataset.rows, dataset.display_name, created) == (4, f"somebody/pairs@{COMMIT[:12]}", True)
    assert [getattr(row, "prompt", None) for row in rows] == ["0+1?", "3+1?"]
    assert (same.dataset_id, created_again) == (dataset.dataset_id, False)


async def test_a_single_file_needs_no_pattern(tmp_path: Path, redis_url: str, redis_namespace: str) -> None:
    files = {"README.md": b"", "pairs.jsonl": "\n".join(map(json.dumps, PAIRS)).encode()}
    async with importing(tmp_path, redis_url, redis_namespace, files) as (client, _):
        dataset, *_ = await client.import_dataset("somebody/pairs", revision=COMMIT)
        _, created, commit = await client.import_dataset("somebody/pairs", revision="v1")

    assert dataset.rows == 6
    assert (created, commit) == (False, COMMIT)


@pytest.mark.parametrize(
    ("files", "field", "reason"),
    [
        ([], "files", "must say which files to take: it has data/test-00000-of-00001.parquet, data/train-"),
        (["data/dev-*"], "files[0]", "fits no file"),
        (["data/test-*", "../outside.jsonl"], "files[1]", "fits no file"),
        (["code/loader.py"], None, "name its format"),
    ],
)
async def test_what_is_meant_must_be_clear(
    tmp_path: Path, redis_url: str, redis_namespace: str, files: list[str], field: str | None, reason: str
) -> None:
    async with importing(tmp_path, redis_url, redis_namespace, FILES) as (client, settings):
        with pytest.raises(InvalidArgumentError, match=reason) as caught:
            await client.import_dataset("somebody/pairs", revision=COMMIT, files=files)
        assert stored_keys(open_store(settings)) == []

    assert [violation.field for violation in caught.value.violations] == ([field] if field else [])


async def test_a_wrong_row_is_named_with_its_file(tmp_path: Path, redis_url: str, redis_namespace: str) -> None:
    files = {"a.jsonl": json.dumps(PAIRS[0]).encode(), "b.jsonl": b'{"prompt": "x", "chosen": 5, "rejected": "y"}'}
    async with importing(tmp_path, redis_url, redis_namespace, files) as (client, _):
        with pytest.raises(InvalidArgumentError) as caught:
            await client.import_dataset("somebody/pairs", revision=COMMIT, files=["*.jsonl"])

    assert [violation.field for violation in caught.value.violations] == ["b.jsonl row 1.chosen"]


async def test_files_that_are_too_large_are_not_fetched(tmp_path: Path, redis_url: str, redis_namespace: str) -> None:
    async with importing(tmp_path, redis_url, redis_namespace, FILES, max_upload_bytes=100) as (client, _):
        with pytest.raises(InvalidArgumentError, match=r"more than max_upload_bytes \(100\)"):
            await client.import_dataset("somebody/pairs", revision=COMMIT, files=["data/*"])


async def test_an_import_names_a_dataset_and_a_revision_that_are_there(
    tmp_path: Path, redis_url: str, redis_namespace: str
) -> None:
    async with importing(tmp_path, redis_url, redis_namespace, FILES) as (client, _):
        with pytest.raises(NotFoundError, match="no dataset somebody/other"):
            await client.import_dataset("somebody/other", revision=COMMIT)
        with pytest.raises(NotFoundError, match="no dataset somebody/pairs at v2"):
            await client.import_dataset("somebody/pairs", revision="v2")
        with pytest.raises(
            FailedPreconditionError, match=r"refuses dataset private/pairs .HTTP 403.: give the gateway"
        ):
            await client.import_dataset("private/pairs", revision=COMMIT)
        for hub_id, revision, field in (("../pairs", COMMIT, "hub_id"), ("somebody/pairs", "../x", "revision")):
            with pytest.raises(InvalidArgumentError) as caught:
                await client.import_dataset(hub_id, revision=revision)
            assert [violation.field for violation in caught.value.violations] == [field]
