"""What models and texts of no good will, and the end of processes, may do to a scorer: nothing to anybody else."""

import asyncio
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
import torch

from madpo import errors
from madpo.rpc.channel import call_metadata
from madpo.rpc.status import from_rpc_error
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub
from madpo_reward.batcher import Unit
from madpo_reward.encoding import Tokens
from madpo_reward.layouts import SharedPrompts
from tests.integration.reward.service import PAIRS, TOKEN, Models, Start, tokenizing_pids, until

SCORE_RESPONSES = "/madpo.v1.RewardService/ScoreResponses"


async def test_a_tokenizing_process_is_replaced_though_the_cache_is_full(
    start: Start, models: Models, tmp_path: Path
) -> None:
    async with start(cache=tmp_path / "cache", max_cache_bytes=0, cache_entries=0) as replica:
        before = await replica.client.score_pairs(models.good, PAIRS[:2])
        await replica.client.score_pairs(models.other, PAIRS[:2])
        (pid,) = tokenizing_pids(models.good)
        os.kill(pid, signal.SIGKILL)

        assert await replica.client.score_pairs(models.good, PAIRS[:2]) == before
        assert tokenizing_pids(models.good) != [pid]


async def test_copies_of_models_that_are_not_resident_make_room(start: Start, models: Models, tmp_path: Path) -> None:
    def copies() -> set[str]:
        return {path.name for path in (tmp_path / "cache/models").iterdir() if path.is_dir()}

    async with start(cache=tmp_path / "cache", max_cache_bytes=0, max_resident_models=1) as replica:
        await replica.client.get_reward_model(models.good)
        assert copies() == {models.good}
        await replica.client.get_reward_model(models.other)
        assert copies() == {models.other}
        with pytest.raises(errors.FailedPreconditionError, match="non-finite weights"):
            await replica.client.get_reward_model(models.broken)
        assert copies() == set()


@pytest.fixture
def failing(models: Models, monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """What forward passes raise over texts with a word; nothing at first."""
    faults: dict[str, Exception] = {}
    forward = SharedPrompts.forward

    def faulty(self: SharedPrompts, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        for word, fault in faults.items():
            if any(models.tokenizer.convert_tokens_to_ids(word) in text.ids for unit in units for text in unit.texts):
                raise fault
        return forward(self, units)

    monkeypatch.setattr(SharedPrompts, "forward", faulty)
    return faults


async def test_a_forward_pass_that_fails_is_typed_and_costs_the_company_nothing(
    start: Start, models: Models, gate: threading.Event, failing: dict[str, Exception]
) -> None:
    failing["bad"] = IndexError("index out of range in self")
    async with start(cache_entries=0) as replica:
        score = replica.client.score_responses
        expected = await score(models.good, [("the", "good film")])
        gate.clear()
        held = asyncio.create_task(score(models.good, [("the", "film")]))
        await until(lambda: replica.count("madpo_reward_queue_tokens") > 0)
        spoilt = asyncio.create_task(score(models.good, [("the", "bad film")]))
        company = asyncio.create_task(score(models.good, [("the", "good film")]))
        await until(lambda: replica.count("madpo_reward_score_duration_seconds_count", phase="tokenize") == 4)
        gate.set()

        with pytest.raises(errors.FailedPreconditionError, match=r"model-\w+ cannot score .*IndexError: index out of"):
            await spoilt
        assert await company == expected
        await held
        assert replica.count("madpo_rpc_calls_total", method=SCORE_RESPONSES, code="INTERNAL") == 0


async def test_a_lack_of_memory_is_no_fault_of_the_model_and_tried_again(
    start: Start, models: Models, failing: dict[str, Exception]
) -> None:
    failing["bad"] = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    async with start() as replica:
        waiting = asyncio.create_task(replica.client.score_responses(models.good, [("the", "bad film")]))
        code = "RESOURCE_EXHAUSTED"
        await until(lambda: replica.count("madpo_rpc_calls_total", method=SCORE_RESPONSES, code=code) > 0)
        failing.clear()

        assert len(await waiting) == 1
        failing["film"] = torch.OutOfMemoryError("CUDA out of memory.")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
            request = reward.GetRewardModelRequest(model_id=models.other)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await RewardServiceStub(channel).GetRewardModel(request, timeout=60, metadata=call_metadata(TOKEN))
    overload = from_rpc_error(refused.value)
    assert isinstance(overload, errors.OverloadedError)
    assert overload.retry_after_s
    assert "not enough memory" in str(overload)
    assert "MADPO_REWARD_MAX_TOKENS" in str(overload)


async def test_whatever_a_load_runs_into_is_typed(
    start: Start, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as replica:
        for fault, kind in (
            (OSError(28, "No space left on device"), errors.UnavailableError),
            (KeyError("rope_theta"), errors.FailedPreconditionError),
            (MemoryError(), errors.OverloadedError),
        ):
            monkeypatch.setattr("madpo_reward.service.load_scorer", Mock(side_effect=fault))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
                request = reward.GetRewardModelRequest(model_id=models.good)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await RewardServiceStub(channel).GetRewardModel(request, timeout=60, metadata=call_metadata(TOKEN))
            assert type(from_rpc_error(refused.value)) is kind
            assert f"{models.good} cannot be loaded" in str(refused.value)
