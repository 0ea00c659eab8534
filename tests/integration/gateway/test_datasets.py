"""Datasets over the wire: real server, raw stubs, a real store."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from madpo.data.check.report import CheckReport
from madpo.ports import JobRequest
from madpo.rpc import convert
from madpo.rpc.channel import MAX_READ_ROWS, call_metadata
from madpo.types import JobKind, JobResult, PreferencePair
from madpo.v1 import dataset_service_pb2, job_service_pb2
from madpo_client.check import check_file
from tests.integration.gateway.messages import chunk, dataset_parts, digest, header, json_lines, parquet
from tests.integration.gateway.service import (
    COMPLETIONS,
    NO_DATASET,
    PAIRS,
    TOKEN,
    Gateway,
    Refusal,
    eventually,
    refusal,
)


async def test_an_uploaded_file_is_a_dataset_that_can_be_looked_at(gateway: Gateway) -> None:
    rows = [*({**row, "margin": 1.0} for row in PAIRS), PAIRS[3] | {"chosen": "long answer", "margin": -1.0}]
    rows.append(rows[0])

    uploaded = await gateway.upload_dataset(rows, name="sums")

    dataset = uploaded.dataset
    assert uploaded.created
    assert (dataset.kind, dataset.rows, dataset.display_name) == ("preference", 22, "sums")
    assert list(dataset.columns) == ["reward_margin"]
    request = dataset_service_pb2.GetDatasetRequest(dataset_id=dataset.dataset_id)
    assert (await gateway.ask(gateway.datasets.GetDataset, request)).dataset == dataset
    assert gateway.spooled() == []


async def test_a_stored_dataset_has_the_report_of_its_file(gateway: Gateway, tmp_path: Path) -> None:
    rows, held_out = [*PAIRS, PAIRS[3] | {"chosen": "long answer"}, PAIRS[0]], [PAIRS[1] | {"chosen": "another"}]
    stored, other = [(await gateway.upload_dataset(each)).dataset.dataset_id for each in (rows, held_out)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "held-out", "rows")}
    files["data"].write_bytes(json_lines(rows))
    files["held-out"].write_bytes(json_lines(held_out))
    local = check_file(files["data"], held_out=files["held-out"], rows_file=files["rows"])

    request = dataset_service_pb2.CheckDatasetRequest(dataset_id=stored, eval_dataset_id=other)
    parts = await gateway.collect(gateway.datasets.CheckDataset, request)

    assert [part.WhichOneof("part") for part in parts] == ["report_json", "rows_chunk"]
    report = CheckReport.from_json(parts[0].report_json)
    assert report.rows.kinds == local.rows.kinds
    assert report == local.model_copy(update={"name": stored, "rows": report.rows})
    assert {finding.code for finding in report.findings} == {"duplicate", "leaked_prompt"}
    assert parts[1].rows_chunk == files["rows"].read_bytes()
    for field in ("dataset_id", "eval_dataset_id"):
        wrong = dataset_service_pb2.CheckDatasetRequest(**({"dataset_id": stored} | {field: "../etc"}))
        assert list((await refusal(gateway.collect(gateway.datasets.CheckDataset, wrong))).violations) == [field]


async def test_the_same_content_is_one_dataset_in_any_format(gateway: Gateway) -> None:
    first = await gateway.upload_dataset(PAIRS, name="first")

    again = await gateway.upload_dataset(PAIRS, name="again")
    other = await gateway.ask(
        gateway.datasets.UploadDataset, dataset_parts(parquet(PAIRS), file_format="parquet", name="other")
    )

    assert [first.created, again.created, other.created] == [True, False, False]
    assert first.dataset == again.dataset == other.dataset
    listed = await gateway.ask(gateway.datasets.ListDatasets, dataset_service_pb2.ListDatasetsRequest())
    assert list(listed.datasets) == [first.dataset]


async def test_a_file_with_bad_rows_is_refused_whole_and_each_row_is_named(gateway: Gateway) -> None:
    lines = json_lines([*PAIRS, {"prompt": 1, "chosen": "a", "rejected": "b"}, {"prompt": "x"}, *PAIRS])

    refused = await refusal(gateway.ask(gateway.datasets.UploadDataset, dataset_parts(lines + b"{oops\n")))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ["row 21.prompt", "row 22", "row 43"]
    assert refused.violations["row 21.prompt"] == "must be text or a list of messages, got int"
    assert gateway.stored() == []
    assert gateway.spooled() == []


async def test_very_many_bad_rows_still_make_an_error_that_arrives(gateway: Gateway) -> None:
    rows = [{"prompt": [{"role": "ü" * 70, "content": "x"}]} for _ in range(100)]

    refused = await refusal(gateway.upload_dataset(rows))

    # As many of the 20 as an error can carry, the first of them.
    assert list(refused.violations) == [f"row {row}.prompt[0].role" for row in range(1, len(refused.violations) + 1)]
    assert 10 <= len(refused.violations) <= 20
    assert refused.message.startswith("at least 20 unusable rows, first row 1.prompt[0].role")


GOOD = json_lines(COMPLETIONS)


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ([], "header", "first message"),
        ([chunk(GOOD), digest(GOOD)], "header", "first message"),
        ([header(format="xml"), chunk(GOOD), digest(GOOD)], "header.format", "arrow, csv, got 'xml'"),
        ([header(format="jsonl", display_name="x" * 201)], "header.display_name", "at most 200"),
        ([header(format="jsonl", display_name="a\nb")], "header.display_name", "printable"),
        ([header(format="jsonl"), chunk(GOOD), digest(GOOD + b"x")], "sha256", "have digest"),
        ([header(format="jsonl"), chunk(GOOD)], "sha256", "ended early"),
        ([header(format="jsonl"), header(format="jsonl")], "part", "must be a chunk"),
        ([header(format="jsonl"), chunk(bytes(1024 * 1024 + 1))], "chunk", "at most 1048576 bytes"),
        ([header(format="jsonl"), *[chunk(bytes(1_000_000))] * 4], "chunk", "max_upload_bytes (3000000 bytes)"),
        ([header(format="jsonl"), digest(b"")], None, "no rows"),
        ([header(format="parquet"), chunk(GOOD), digest(GOOD)], None, "not readable Parquet"),
    ],
)
async def test_an_upload_that_is_not_as_agreed_is_refused(
    gateway: Gateway, parts: list[Any], field: str | None, reason: str
) -> None:
    refused = await refusal(gateway.ask(gateway.datasets.UploadDataset, parts))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ([field] if field else [])
    assert reason in refused.message
    assert gateway.stored() == []
    assert gateway.spooled() == []


async def test_a_client_that_goes_away_in_an_upload_leaves_nothing(gateway: Gateway) -> None:
    call = gateway.datasets.UploadDataset(metadata=call_metadata(TOKEN))
    await call.write(header(format="jsonl"))
    await call.write(chunk(GOOD))
    await eventually(lambda: any(path.is_file() for path in gateway.spooled()))

    call.cancel()

    await eventually(lambda: gateway.spooled() == [])
    assert gateway.stored() == []


async def test_some_rows_are_read_in_their_order_whatever_their_size(gateway: Gateway) -> None:
    rows = [{"prompt": f"{n} {'x' * 200_000}", "chosen": "a", "rejected": "b"} for n in range(1, 9)]
    dataset_id = (await gateway.upload_dataset(rows)).dataset.dataset_id
    request = dataset_service_pb2.ReadDatasetRowsRequest

    messages = await gateway.collect(
        gateway.datasets.ReadDatasetRows, request(dataset_id=dataset_id, rows=[8, 2, 3, 5, 7, 2])
    )

    assert len(messages) > 1
    read = [convert.dataset_row_from_proto(row) for message in messages for row in message.rows]
    assert read == [PreferencePair(rows[n - 1]["prompt"], "a", "b", row=n) for n in (2, 3, 5, 7, 8)]
    assert await gateway.collect(gateway.datasets.ReadDatasetRows, request(dataset_id=dataset_id)) == []
    whole = await gateway.collect(
        gateway.datasets.DownloadDataset, dataset_service_pb2.DownloadDatasetRequest(dataset_id=dataset_id)
    )
    assert len(whole) > 1
    assert [row.row for message in whole for row in message.rows] == list(range(1, 9))


async def test_rows_that_cannot_be_read_are_refused(gateway: Gateway) -> None:
    dataset_id = (await gateway.upload_dataset(PAIRS)).dataset.dataset_id

    async def refused(dataset_id: str, rows: Iterable[int]) -> Refusal:
        request = dataset_service_pb2.ReadDatasetRowsRequest(dataset_id=dataset_id, rows=rows)
        return await refusal(gateway.collect(gateway.datasets.ReadDatasetRows, request))

    missing = await refused(dataset_id, [1, len(PAIRS) + 1])
    assert (missing.code, missing.message) == ("NOT_FOUND", f"{dataset_id} has no row {len(PAIRS) + 1}")
    assert (await refused(NO_DATASET, [1])).code == "NOT_FOUND"
    assert list((await refused("../models", [1])).violations) == ["dataset_id"]
    assert list((await refused(dataset_id, range(1, MAX_READ_ROWS + 2))).violations) == ["rows"]


async def test_datasets_come_in_pages(gateway: Gateway) -> None:
    made = {(await gateway.upload_dataset([{"prompt": str(n)}])).dataset.dataset_id for n in range(3)}
    request = dataset_service_pb2.ListDatasetsRequest

    first = await gateway.ask(gateway.datasets.ListDatasets, request(page_size=2))
    rest = await gateway.ask(gateway.datasets.ListDatasets, request(page_size=1000, page_token=first.next_page_token))

    assert (len(first.datasets), len(rest.datasets), rest.next_page_token) == (2, 1, "")
    assert {dataset.dataset_id for dataset in [*first.datasets, *rest.datasets]} == made
    negative = await refusal(gateway.ask(gateway.datasets.ListDatasets, request(page_size=-1)))
    assert list(negative.violations) == ["page_size"]
    unknown = await refusal(gateway.ask(gateway.datasets.ListDatasets, request(page_token="nonsense")))
    assert unknown.code == "INVALID_ARGUMENT"


async def test_a_dataset_in_use_stays_until_its_job_is_over(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    listed = await gateway.ask(gateway.datasets.ListDatasets, dataset_service_pb2.ListDatasetsRequest())
    request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=listed.datasets[0].dataset_id)

    refused = await refusal(gateway.ask(gateway.datasets.DeleteDataset, request))
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    await gateway.ask(gateway.datasets.DeleteDataset, request)

    assert refused.code == "FAILED_PRECONDITION"
    assert job_id in refused.message
    assert (await refusal(gateway.ask(gateway.datasets.DeleteDataset, request))).code == "NOT_FOUND"


async def test_a_dataset_that_a_job_left_stays_while_another_is_to_train_on_it(gateway: Gateway) -> None:
    dataset_id = (await gateway.upload_dataset(PAIRS)).dataset.dataset_id
    leaver = await gateway.queue.create(JobRequest("leaver", JobKind.DATASET_CHECK, {"dataset": dataset_id}))
    claim = await gateway.queue.claim("evaluate", "worker", timeout_s=5)
    assert claim is not None
    await gateway.queue.succeed(claim, JobResult(dataset_id=dataset_id))
    spec = {"model": "model-" + "0" * 32, "dataset": {"job_id": leaver.job_id}, "method": {"name": "dpo"}}
    user = await gateway.queue.create(JobRequest("user", JobKind.POLICY_TRAINING, spec))
    request = dataset_service_pb2.DeleteDatasetRequest(dataset_id=dataset_id)

    refused = await refusal(gateway.ask(gateway.datasets.DeleteDataset, request))

    assert f"{dataset_id} is used by {user.job_id}" in refused.message
    await gateway.queue.cancel(user.job_id)
    await gateway.ask(gateway.datasets.DeleteDataset, request)
