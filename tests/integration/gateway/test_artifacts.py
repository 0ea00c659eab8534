"""What a job leaves besides a model: artifacts, and the parts of its ledger."""

import hashlib
import json
import os
from pathlib import Path

from madpo.storage import keys
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.content_names import sha256_of
from madpo.storage.ledger import LEDGER_PARTS
from madpo.types import FileEntry
from madpo.v1 import job_service_pb2
from tests.damage import DAMAGES
from tests.integration.gateway.service import NO_JOB, Gateway, refusal


async def test_artifacts_are_listed_and_only_those_are_given(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    (tmp_path / "out" / "plots").mkdir(parents=True)
    report = json.dumps({"noise": list(range(300_000))}).encode()
    (tmp_path / "out" / "report.json").write_bytes(report)
    (tmp_path / "out" / "plots" / "reward.png").write_bytes(b"png")
    listing, download = job_service_pb2.ListArtifactsRequest, job_service_pb2.DownloadArtifactRequest
    before = await gateway.ask(gateway.jobs.ListArtifacts, listing(job_id=job_id))

    publish_artifacts(gateway.store, job_id, tmp_path / "out", attempt=1)
    listed = await gateway.ask(gateway.jobs.ListArtifacts, listing(job_id=job_id))
    chunks = await gateway.collect(gateway.jobs.DownloadArtifact, download(job_id=job_id, name="report.json"))

    assert list(before.artifacts) == []
    assert [FileEntry(file.name, file.size_bytes, file.sha256) for file in listed.artifacts] == [
        FileEntry("plots/reward.png", 3, hashlib.sha256(b"png").hexdigest()),
        FileEntry("report.json", len(report), hashlib.sha256(report).hexdigest()),
    ]
    assert len(chunks) > 1
    assert b"".join(message.chunk for message in chunks) == report
    for name in ("missing.json", "../../spec.json", "manifest.json"):
        refused = await refusal(gateway.collect(gateway.jobs.DownloadArtifact, download(job_id=job_id, name=name)))
        assert refused.code == "NOT_FOUND"


async def test_the_ledger_of_a_job_that_is_not_over_comes_in_parts(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    request = job_service_pb2.DownloadLedgerPartsRequest
    early = await refusal(gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=job_id)))
    assert (early.code, "has no ledger" in early.message) == ("NOT_FOUND", True)
    stored = [os.urandom(700_000), b"second"]
    parts = [
        keys.ledger_part(job_id, step=step, attempt=1, sha256=sha256_of(data))
        for step, data in enumerate(stored, start=1)
    ]
    for key, data in zip(parts, stored, strict=True):
        gateway.store.put(key, data)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "state.json").write_text("{}")
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=1)
    checkpoints.take_ownership()
    checkpoints.publish(2, tmp_path / "files", metadata={LEDGER_PARTS: parts})

    messages = await gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=job_id))

    ends = [index for index, message in enumerate(messages) if message.ends_file]
    assert b"".join(message.chunk for message in messages[: ends[0]]) == stored[0]
    assert b"".join(message.chunk for message in messages[ends[0] :]) == stored[1]
    assert ends[0] > 1
    assert ends[1:] == [len(messages) - 1]
    unknown = await refusal(gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=NO_JOB)))
    assert unknown.code == "NOT_FOUND"

    for damage in DAMAGES:
        gateway.store.put(parts[1], damage(stored[1]))
        damaged = await refusal(gateway.collect(gateway.jobs.DownloadLedgerParts, request(job_id=job_id)))
        assert (damaged.code, parts[1] in damaged.message) == ("DATA_LOSS", True)
