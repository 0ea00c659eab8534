"""The reward client against a server that misbehaves on the wire, as no healthy reward service does."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest

from madpo import errors
from madpo.rpc.reward_client import RewardClient
from madpo.types import PreferencePair
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceServicer, add_RewardServiceServicer_to_server

MODEL_ID = "model-" + "a" * 32
PAIRS = [PreferencePair("p", f"chosen {n}", f"rejected {n}") for n in range(5)]

Answer = Callable[[reward.ScorePairsRequest, Any, int], Any]
Connect = Callable[..., AbstractAsyncContextManager[RewardClient]]


def honest(request: reward.ScorePairsRequest) -> reward.ScorePairsResponse:
    scores = [
        reward.ScoredPair(pair_id=pair.pair_id, chosen_reward=index, rejected_reward=-1)
        for index, pair in enumerate(request.pairs)
    ]
    return reward.ScorePairsResponse(model_id=request.model_id, revision="r1", pairs=scores)


@pytest.fixture
def connect() -> Connect:
    """Serves one answer function, called with request, context and the number of the call; yields a client."""

    @asynccontextmanager
    async def connect(answer: Answer, *, timeout_s: float = 30.0) -> AsyncIterator[RewardClient]:
        class Servicer(RewardServiceServicer):
            calls = 0

            async def ScorePairs(self, request: reward.ScorePairsRequest, context: Any) -> Any:  # noqa: N802
                self.calls += 1
                return await answer(request, context, self.calls)

        server = grpc.aio.server()
        add_RewardServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with RewardClient(f"127.0.0.1:{port}", timeout_s=timeout_s) as client:
            yield client
        await server.stop(None)

    return connect


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
async def test_an_ending_the_caller_did_not_cause_is_retried(connect: Connect, code: grpc.StatusCode) -> None:
    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        if call < 3:
            await context.abort(code, "going away")
        return honest(request)

    async with connect(answer) as client:
        assert len(await client.score_pairs(MODEL_ID, PAIRS)) == len(PAIRS)


async def test_what_retrying_cannot_help_is_sent_once(connect: Connect) -> None:
    calls = []

    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        calls.append(len(request.pairs))
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    async with connect(answer) as client:
        with pytest.raises(errors.InvalidArgumentError, match="no"):
            await client.score_pairs(MODEL_ID, PAIRS)

    assert calls == [5]


@pytest.mark.promise("G6")
async def test_an_oversize_refusal_halves_the_request_and_ends_at_one_pair(connect: Connect) -> None:
    sizes = []

    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        sizes.append(len(request.pairs))
        if len(request.pairs) > 1 or request.pairs[0].chosen.text == "chosen 4":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
        return honest(request)

    async with connect(answer) as client:
        assert len(await client.score_pairs(MODEL_ID, PAIRS[:4])) == 4
        with pytest.raises(errors.OverloadedError, match="too large"):
            await client.score_pairs(MODEL_ID, PAIRS[4:])

    assert sizes == [4, 2, 1, 1, 2, 1, 1, 1]


async def test_a_reply_about_other_pairs_is_never_used(connect: Connect) -> None:
    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        reply = honest(request)
        return reward.ScorePairsResponse(revision=reply.revision, pairs=list(reply.pairs)[::-1])

    async with connect(answer) as client:
        with pytest.raises(errors.InternalError, match="other ids"):
            await client.score_pairs(MODEL_ID, PAIRS)


async def test_a_non_finite_reply_names_its_pair(connect: Connect) -> None:
    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        reply = honest(request)
        reply.pairs[2].rejected_reward = float("nan")
        return reply

    async with connect(answer) as client:
        with pytest.raises(errors.NonFiniteError) as refused:
            await client.score_pairs(MODEL_ID, PAIRS)

    assert refused.value.pair_ids == (PAIRS[2].pair_id,)


@pytest.mark.promise("T5")
async def test_one_call_never_mixes_revisions(connect: Connect) -> None:
    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        reply = honest(request)
        reply.revision = f"r{call}"
        return reply

    async with connect(answer) as client:
        with pytest.raises(errors.RevisionMismatchError, match="r1, r2"):
            await client.score_pairs(MODEL_ID, [PreferencePair("p", f"{n}", "r") for n in range(65)])


async def test_the_error_that_used_the_time_up_is_the_one_raised(connect: Connect) -> None:
    async def answer(request: reward.ScorePairsRequest, context: Any, call: int) -> Any:
        await context.abort(grpc.StatusCode.CANCELLED, "draining")

    async with connect(answer, timeout_s=0.5) as client:
        with pytest.raises(errors.UnavailableError, match="draining"):
            await client.score_pairs(MODEL_ID, PAIRS)


async def test_nothing_to_score_asks_nobody() -> None:
    async with RewardClient("127.0.0.1:1", timeout_s=1) as nobody:
        assert await nobody.score_pairs(MODEL_ID, []) == []
