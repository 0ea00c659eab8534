"""Revisions and replicas: scores of one revision only, and no call lost with a replica."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from madpo import errors
from madpo.rpc.reward_client import RewardClient
from tests.integration.reward.service import PAIRS, TOKEN, Models, Start, until


@pytest.mark.promise("T5")
async def test_scores_of_another_revision_are_never_used(start: Start, models: Models) -> None:
    async with start(batch_tokens=256) as old, start(batch_tokens=512) as new:
        pinned = (await old.client.get_reward_model(models.good)).revision
        found = (await new.client.get_reward_model(models.good)).revision
        with pytest.raises(errors.RevisionMismatchError, match=f"{found}.*{pinned}"):
            await new.client.score_pairs(models.good, PAIRS[:2], revision=pinned)
        target = f"ipv4:127.0.0.1:{old.port},127.0.0.1:{new.port}"
        async with RewardClient(target, token=TOKEN, timeout_s=30) as client:
            for pair in PAIRS[:8]:
                await client.score_pairs(models.good, [pair], revision=pinned)

        assert old.count("madpo_reward_pairs_total", outcome="scored") == 8
        assert new.count("madpo_reward_pairs_total", outcome="scored") > 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def processes(models: Models, tmp_path: Path) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Three replicas as processes of their own, by port; the model is loaded before they answer SERVING."""
    replicas = {}
    for port in [free_port() for _ in range(3)]:
        settings = {
            "MADPO_REWARD_STORE_URL": models.url,
            "MADPO_REWARD_CACHE": str(tmp_path / "shared-cache"),
            "MADPO_REWARD_TOKEN": TOKEN,
            "MADPO_REWARD_PORT": str(port),
            "MADPO_REWARD_PRELOAD": json.dumps([models.good]),
            "MADPO_REWARD_CACHE_ENTRIES": "0",
            "MADPO_REWARD_THREADS": "1",
        }
        replicas[port] = subprocess.Popen([sys.executable, "-m", "madpo_reward"], env={**os.environ, **settings})
    yield replicas
    for process in replicas.values():
        process.kill()
        process.wait()


@pytest.mark.promise("G1")
async def test_losing_and_draining_replicas_under_load_fails_no_call(
    processes: dict[int, subprocess.Popen[bytes]], models: Models, figure: Callable[[str], None]
) -> None:
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in processes)
    killed, drained, left = processes.values()
    scores: list[tuple[float, float]] = []
    stop = asyncio.Event()

    async with RewardClient(target, token=TOKEN, timeout_s=60) as client:
        info = await client.get_reward_model(models.good)
        await asyncio.gather(*[serving(port) for port in processes])

        async def load() -> None:
            while not stop.is_set():
                (scored,) = await client.score_pairs(models.good, [PAIRS[7]], revision=info.revision)
                scores.append((scored.chosen_reward, scored.rejected_reward))

        callers = [asyncio.create_task(load()) for _ in range(8)]
        for process, signum in ((killed, signal.SIGKILL), (drained, signal.SIGTERM)):
            before = len(scores)
            await until(lambda before=before: len(scores) > before + 50)  # type: ignore[misc]
            process.send_signal(signum)
            await asyncio.to_thread(process.wait, 30)
        before = len(scores)
        await until(lambda: len(scores) > before + 50)
        stop.set()
        await asyncio.gather(*callers)

    left.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(left.wait, 30) == 0
    assert drained.returncode == 0
    assert killed.returncode == -signal.SIGKILL
    assert len(set(scores)) == 1
    figure(f"1 of 3 scorers killed, 1 drained, {len(scores):,} calls, 0 failed")


async def serving(port: int) -> None:
    """Wait until the replica on this port is healthy."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(60):
            while True:
                request = health_pb2.HealthCheckRequest(service="madpo.v1.RewardService")
                reply = await stub.Check(request, timeout=30, wait_for_ready=True)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                await asyncio.sleep(0.1)


def test_a_missing_setting_ends_the_process_with_one_clear_line() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MADPO_")}
    result = subprocess.run([sys.executable, "-m", "madpo_reward"], env=environment, capture_output=True, text=True)

    assert result.returncode == 1
    assert "MADPO_REWARD_STORE_URL: Field required" in result.stderr
    assert len(result.stderr.splitlines()) == 1
