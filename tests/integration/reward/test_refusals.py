"""What the reward service refuses, and how it says so."""

import grpc
import pytest

from madpo import errors
from madpo.rpc.channel import call_metadata
from madpo.rpc.reward_client import RewardClient
from madpo.types import Message, PreferencePair, content_digest
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub
from tests.integration.reward.service import PAIRS, TOKEN, Models, Start


async def test_models_that_cannot_score_are_refused_with_the_reason(start: Start, models: Models) -> None:
    async with start() as replica:
        describe = replica.client.get_reward_model
        with pytest.raises(errors.InvalidArgumentError, match="2 labels"):
            await describe(models.two_labels)
        with pytest.raises(errors.FailedPreconditionError, match="no scoring head"):
            await describe(models.headless)
        with pytest.raises(errors.InvalidArgumentError, match="causal_lm model; scoring needs a reward model"):
            await describe(models.causal)
        with pytest.raises(errors.FailedPreconditionError, match="non-finite weights"):
            await describe(models.broken)
        with pytest.raises(errors.NotFoundError, match="model-0000"):
            await describe("model-" + "0" * 32)
        with pytest.raises(errors.InvalidArgumentError, match="32 hex digits"):
            await describe("../../etc")


async def test_a_wrong_or_missing_token_is_refused(start: Start, models: Models) -> None:
    async with start() as replica:
        for token in (None, "wrong"):
            async with RewardClient(f"127.0.0.1:{replica.port}", token=token) as client:
                with pytest.raises(errors.UnauthenticatedError):
                    await client.get_reward_model(models.good)


async def test_bad_requests_name_the_field_and_the_pair(start: Start, models: Models) -> None:
    text, empty = {"text": "good"}, {"text": ""}
    good = {"prompt": text, "chosen": text, "rejected": {"text": "bad"}}
    empty_id = content_digest("good", "good", "")
    cases = [
        ([], "pairs"),
        ([good] * 4, "pairs"),
        ([good, {**good, "pair_id": "0" * 32}], "pairs[1].pair_id"),
        ([good, {"prompt": text, "chosen": text}], "pairs[1].rejected"),
        ([{**good, "rejected": empty}], "pairs[0].rejected"),
    ]
    async with start(max_pairs_per_request=3) as replica:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
            stub = RewardServiceStub(channel)
            for pairs, _ in cases:
                request = reward.ScorePairsRequest(model_id=models.good, pairs=pairs)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ScorePairs(request, timeout=30, metadata=call_metadata(TOKEN))
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(errors.InvalidPairError, match=empty_id) as invalid:
            await replica.client.score_pairs(models.good, [PreferencePair("good", "good", "")])
        with pytest.raises(errors.InvalidPairError, match="must both be text") as mixed:
            await replica.client.score_pairs(models.good, [PreferencePair("good", (Message("user", "a"),), "b")])

    assert invalid.value.violations[0].field == "pairs[0].rejected"
    assert mixed.value.violations[0].field == PreferencePair("good", (Message("user", "a"),), "b").pair_id


@pytest.mark.promise("T6")
async def test_a_non_finite_score_names_its_pair_and_spares_the_neighbours(start: Start, models: Models) -> None:
    poisoned = PreferencePair("the film", "was good", "was bad")
    async with start() as replica:
        with pytest.raises(errors.NonFiniteError, match=poisoned.pair_id) as refused:
            await replica.client.score_pairs(models.nan_on_bad, [PAIRS[1], poisoned, PAIRS[2]])
        scored = await replica.client.score_pairs(models.nan_on_bad, [PAIRS[1], PAIRS[2]])

    assert refused.value.pair_ids == (poisoned.pair_id,)
    assert len(scored) == 2
