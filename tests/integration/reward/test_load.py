"""Load, cancellation and size of requests for scores."""

import asyncio
import threading

import grpc
import pytest

from madpo import errors
from madpo.rpc.channel import MESSAGE_LIMIT_BYTES, call_metadata
from madpo.rpc.convert import pair_to_proto
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.status import from_rpc_error
from madpo.types import PreferencePair
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub
from tests.integration.reward.service import PAIRS, TOKEN, Models, Start, until


@pytest.mark.promise("G4")
async def test_a_full_queue_refuses_with_a_hint_and_the_client_gets_through(
    start: Start, models: Models, gate: threading.Event
) -> None:
    fills_the_queue = PreferencePair("", "good " * 62, "was " * 62)
    request = reward.ScorePairsRequest(model_id=models.good, pairs=[pair_to_proto(PAIRS[1])])
    async with start(max_tokens=64, max_queue_tokens=128) as replica:
        await replica.client.get_reward_model(models.good)
        gate.clear()
        first = asyncio.create_task(replica.client.score_pairs(models.good, [fills_the_queue]))
        await until(lambda: replica.count("madpo_reward_queue_tokens") == 1 + 63 + 63)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await RewardServiceStub(channel).ScorePairs(request, timeout=30, metadata=call_metadata(TOKEN))
        second = asyncio.create_task(replica.client.score_pairs(models.good, [PAIRS[1]]))
        await until(lambda: replica.count("madpo_reward_pairs_total", outcome="refused") >= 2)
        gate.set()

        assert len(await first) == len(await second) == 1
        assert replica.count("madpo_reward_queue_tokens") == 0
    overload = from_rpc_error(refused.value)
    assert isinstance(overload, errors.OverloadedError)
    assert overload.retry_after_s


@pytest.mark.promise("G5")
async def test_a_cancelled_request_costs_no_forward_pass(start: Start, models: Models, gate: threading.Event) -> None:
    # A long line: on a slow machine the door would turn some of them away.
    async with start(cache_entries=0, max_queue_s=600.0) as replica:
        await replica.client.get_reward_model(models.good)
        gate.clear()
        held = asyncio.create_task(replica.client.score_responses(models.good, [("the", "film")]))
        # Until it is tokenized its room is a guess.
        await until(lambda: replica.count("madpo_reward_score_duration_seconds_count", phase="tokenize") == 1)
        queued = replica.count("madpo_reward_queue_tokens")
        gone = [asyncio.create_task(replica.client.score_pairs(models.good, [pair])) for pair in PAIRS[1:]]
        await until(lambda: replica.count("madpo_reward_score_duration_seconds_count", phase="tokenize") == len(PAIRS))
        for task in gone:
            task.cancel()
        await until(lambda: replica.count("madpo_reward_queue_tokens") == queued)
        gate.set()
        await held
        await replica.client.score_responses(models.good, [("after", "all")])

        assert replica.forwards == 2
        assert replica.count("madpo_reward_pairs_total", outcome="dropped") == len(gone)


@pytest.mark.promise("G5")
async def test_a_deadline_ends_the_wait_and_the_work(start: Start, models: Models, gate: threading.Event) -> None:
    async with start() as replica:
        await replica.client.get_reward_model(models.good)
        gate.clear()
        held = asyncio.create_task(replica.client.score_responses(models.good, [("the", "film")]))
        await until(lambda: replica.count("madpo_reward_queue_tokens") > 0)
        async with RewardClient(f"127.0.0.1:{replica.port}", token=TOKEN, timeout_s=0.2) as hasty:
            with pytest.raises(errors.DeadlineExceededError, match="no answer within"):
                await hasty.score_pairs(models.good, PAIRS[:2])
        await until(lambda: replica.count("madpo_reward_pairs_total", outcome="dropped") == 2)
        gate.set()
        await held
        await replica.client.score_responses(models.good, [("after", "all")])

        assert replica.forwards == 2


async def test_a_request_the_queue_can_never_hold_is_halved_by_the_client(start: Start, models: Models) -> None:
    async with start(max_tokens=64, max_queue_tokens=128) as replica:
        scored = await replica.client.score_pairs(models.good, PAIRS[:8])

        assert [score.pair_id for score in scored] == [pair.pair_id for pair in PAIRS[:8]]
        assert replica.count("madpo_reward_pairs_total", outcome="refused") >= 8


async def test_requests_are_split_to_what_the_server_takes(start: Start, models: Models) -> None:
    async with start(max_pairs_per_request=5) as replica:
        await replica.client.get_reward_model(models.good)
        scored = await replica.client.score_pairs(models.good, PAIRS)

        assert [score.pair_id for score in scored] == [pair.pair_id for pair in PAIRS]
        assert replica.count("madpo_rpc_calls_total", method="/madpo.v1.RewardService/ScorePairs", code="OK") == 5


@pytest.mark.promise("G6")
async def test_a_pair_too_large_for_a_message_is_refused_before_it_is_sent(models: Models) -> None:
    large = PreferencePair("the", "good", "x" * MESSAGE_LIMIT_BYTES)
    async with RewardClient("127.0.0.1:1", timeout_s=3) as nobody:
        with pytest.raises(errors.InvalidPairError, match=large.pair_id):
            await nobody.score_pairs(models.good, [large])
        with pytest.raises(errors.UnavailableError, match="does not answer"):
            await nobody.score_pairs(models.good, PAIRS[:1])
