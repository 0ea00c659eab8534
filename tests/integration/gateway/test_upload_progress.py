"""What whoever uploads a dataset is told: the bytes as they are sent, then the rows as the gateway checks them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from madpo.rpc.gateway import datasets as calls
from madpo.rpc.gateway.client import GatewayClient
from madpo_gateway.servicers import datasets as servicer
from tests.integration.gateway.messages import json_lines
from tests.integration.gateway.service import PAIRS, TOKEN, Gateway

_CHECKED = 5


async def test_the_rows_that_the_gateway_checks_are_counted_behind_the_last_byte(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json_lines(PAIRS))
    told, parse_rows = threading.Event(), servicer.parse_rows

    def waiting(*args: Any) -> Iterator[Any]:
        """Goes on behind some rows only once the client has heard of them."""
        for count, row in enumerate(parse_rows(*args), start=1):
            yield row
            if count == _CHECKED:
                assert told.wait(timeout=60)

    monkeypatch.setattr(servicer, "parse_rows", waiting)
    monkeypatch.setattr(calls, "_ROWS_PERIOD_S", 0.01)
    seen: list[tuple[str, int]] = []

    def on_rows(count: int) -> None:
        seen.append(("rows", count))
        if count == _CHECKED:
            told.set()

    async with GatewayClient(gateway.target, token=TOKEN) as client:
        dataset, created = await client.upload_dataset(
            [path], display_name="pairs", on_bytes=lambda count: seen.append(("bytes", count)), on_rows=on_rows
        )

    kinds = [kind for kind, _ in seen]
    rows = [count for kind, count in seen if kind == "rows"]
    assert (created, dataset.rows) == (True, len(PAIRS))
    assert sum(count for kind, count in seen if kind == "bytes") == path.stat().st_size
    assert kinds == sorted(kinds)  # all bytes before the first row
    assert rows == sorted(rows)
    assert _CHECKED in rows
