"""What a job printed: from its events while it runs, from the store when an attempt has ended."""

from typing import Any

from madpo.ports import Claim
from madpo.storage.logs import LOG_BYTES, write_log
from madpo.types import LogLine
from madpo.v1 import job_service_pb2
from tests.integration.gateway.service import NO_JOB, Gateway, refusal


async def log(gateway: Gateway, job_id: str, **fields: Any) -> tuple[str, str]:
    request = job_service_pb2.DownloadLogRequest(job_id=job_id, **fields)
    messages = await gateway.collect(gateway.jobs.DownloadLog, request)
    return b"".join(message.chunk for message in messages).decode(), messages[-1].cursor


async def begun(gateway: Gateway) -> Claim:
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    return claim


async def test_a_log_is_there_while_the_attempt_runs_and_after_it_has_ended(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    early = await refusal(log(gateway, job_id))
    first = await begun(gateway)
    await gateway.queue.publish(first, [LogLine("loading"), LogLine("training")])

    text, cursor = await log(gateway, job_id)

    assert (early.code, "it has not started" in early.message) == ("NOT_FOUND", True)
    assert text == "loading\ntraining"
    await gateway.queue.publish(first, [LogLine("crashing")])
    behind = [event.event async for event in _first(gateway.queue.watch(job_id, cursor=cursor))]
    assert behind == [LogLine("crashing")]

    write_log(gateway.store, job_id, "stored", attempt=1)
    await gateway.queue.give_back(first, reason="boom")
    await gateway.queue.publish(await begun(gateway), [LogLine("once more")])

    assert await log(gateway, job_id, attempt=1) == ("stored", "")
    newest, cursor = await log(gateway, job_id)
    assert (newest, bool(cursor)) == ("once more", True)
    unknown = await refusal(log(gateway, job_id, attempt=7))
    assert (unknown.code, "no log of attempt 7; attempts with one: 1" in unknown.message) == ("NOT_FOUND", True)
    assert (await refusal(log(gateway, NO_JOB))).code == "NOT_FOUND"


async def test_of_a_long_log_the_end_is_kept_and_comes_whole(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    await begun(gateway)
    printed = "x" * LOG_BYTES + "the end"
    write_log(gateway.store, job_id, printed, attempt=1)

    assert await log(gateway, job_id) == (printed[-LOG_BYTES:], "")


async def _first(events: Any) -> Any:
    async for event in events:
        yield event
        return
