"""What the gateway counts."""

import asyncio
import json

from madpo.rpc.channel import call_metadata
from madpo.v1 import job_service_pb2
from tests.integration.gateway.messages import json_lines, safetensors
from tests.integration.gateway.service import COMPLETIONS, POLICY_CONFIG, TOKEN, Gateway


async def test_uploads_and_watchers_are_counted(gateway: Gateway) -> None:
    async def count(name: str, **labels: str) -> float | None:
        # Off the event loop: some figures are asked for when they are read.
        return await asyncio.to_thread(gateway.registry.get_sample_value, name, labels)

    job_id = await gateway.ready_job()
    assert await count("madpo_gateway_stored_total", content="dataset") == 1
    assert await count("madpo_gateway_upload_bytes_total", content="dataset") == len(json_lines(COMPLETIONS))
    assert await count("madpo_gateway_stored_total", content="model") == 1
    assert await count("madpo_gateway_upload_bytes_total", content="model") == len(
        json.dumps(POLICY_CONFIG).encode()
    ) + len(safetensors(1)) + len(b"{}")
    assert await count("madpo_queue_depth", queue="train") == 1

    await gateway.upload_dataset(COMPLETIONS)
    assert await count("madpo_gateway_stored_total", content="dataset") == 1

    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    stream = gateway.jobs.WatchJob(request, metadata=call_metadata(TOKEN), timeout=30)
    await stream.read()
    assert await count("madpo_gateway_watch_streams") == 1
    stream.cancel()
    while await count("madpo_gateway_watch_streams"):
        await asyncio.sleep(0.02)
