"""Scores through the gateway: those of the reward service to the bit, of one revision, and bounded."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from madpo.errors import NonFiniteError, OverloadedError, RevisionMismatchError
from madpo.jobs.base import job_id_of
from madpo.ports import JobRequest
from madpo.rpc import convert
from madpo.rpc.channel import MAX_SCORED_BYTES, MAX_SCORED_ITEMS, call_metadata
from madpo.rpc.gateway.calls import Ending
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.status import from_rpc_error
from madpo.types import JobKind, JobResult, Message, PreferencePair
from madpo.v1 import access_service_pb2, preference_pb2
from madpo.v1 import scoring_service_pb2 as pb
from madpo.v1.scoring_service_pb2_grpc import ScoringServiceStub
from madpo_gateway import service
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.nasty import variants
from tests.integration.gateway.service import NO_JOB, NO_MODEL, Gateway, eventually, running
from tests.integration.gateway.service import TOKEN as GATEWAY_TOKEN
from tests.integration.gateway.test_nasty_requests import OURS
from tests.integration.gateway.test_tokens import make, records
from tests.integration.reward.service import PAIRS, TOKEN, Models, Replica, Start

PairsRequest, ResponsesRequest = pb.ScoringServiceScorePairsRequest, pb.ScoringServiceScoreResponsesRequest


@pytest.fixture
def settings(models: Models, tmp_path: Path, redis_url: str, redis_namespace: str) -> GatewaySettings:
    return GatewaySettings(
        store_url=models.url,
        redis_url=SecretStr(redis_url),
        redis_namespace=redis_namespace,
        token=SecretStr(GATEWAY_TOKEN),
        scratch=tmp_path / "scratch",
        reward_token=SecretStr(TOKEN),
        grace_s=0,
    )


@asynccontextmanager
async def gateway_of(settings: GatewaySettings, port: int, **changes: Any) -> AsyncIterator[Gateway]:
    async with running(settings.model_copy(update={"reward_target": f"127.0.0.1:{port}", **changes})) as gateway:
        yield gateway


def model(**reference: Any) -> Any:
    return PairsRequest(reward_model=reference)


def batch(pairs: Iterable[PreferencePair]) -> Any:
    return PairsRequest(batch=pb.PreferencePairBatch(pairs=map(convert.pair_to_proto, pairs)))


class Stream:
    """A call whose status is the server's, also where requests that come too late would replace it."""

    def __init__(self, call: Any) -> None:
        self._call, self._ending, self.cancel = call, Ending(call), call.cancel

    async def read(self) -> Any:
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._ending.unmasked(error) from error


def score(gateway: Gateway, requests: Any, *, token: str = GATEWAY_TOKEN, responses: bool = False) -> Stream:
    stub = ScoringServiceStub(gateway.channel)  # type: ignore[no-untyped-call]
    method = stub.ScoreResponses if responses else stub.ScorePairs
    return Stream(method(requests, metadata=call_metadata(token), timeout=120))


async def refused(call: Stream) -> Any:
    """The error that a stream ends with, and its code."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _all(call)
    return caught.value.code().name, from_rpc_error(caught.value)


async def test_scores_are_those_of_the_reward_service_to_the_bit(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        info = await replica.client.get_reward_model(models.good)
        requests = [model(model_id=models.good), batch(PAIRS[:5]), batch(PAIRS[5:6]), batch(PAIRS[6:])]
        first, *answers = await _all(score(gateway, requests))
        texts = [(pair.prompt, pair.chosen) for pair in PAIRS]
        items = [convert.response_to_proto(*each) for each in texts]
        alone = [
            ResponsesRequest(reward_model={"model_id": models.good}),
            ResponsesRequest(batch=pb.ResponseBatch(responses=items[:7])),
            ResponsesRequest(batch=pb.ResponseBatch(responses=items[7:])),
        ]
        described, *scored = await _all(score(gateway, alone, responses=True))
        direct = await replica.client.score_pairs(models.good, PAIRS)
        direct_alone = await replica.client.score_responses(models.good, texts)

    assert first.reward_model == described.reward_model == convert.reward_model_to_proto(info)
    assert [len(answer.batch.pairs) for answer in answers] == [5, 1, 18]
    pairs = [convert.scored_pair_from_proto(pair) for answer in answers for pair in answer.batch.pairs]
    assert pairs == direct
    assert [pair.reward_margin for answer in answers for pair in answer.batch.pairs] == [
        each.reward_margin for each in direct
    ]
    assert [convert.scored_response_from_proto(each) for answer in scored for each in answer.batch.responses] == (
        direct_alone
    )
    assert gateway.registry.get_sample_value("madpo_gateway_scored_total", {"of": "pairs"}) == 24
    assert gateway.registry.get_sample_value("madpo_gateway_scoring_streams") == 0


async def test_a_job_that_has_left_a_reward_model_names_it(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    spec = {"model": {"model_id": models.causal}, "dataset": {"dataset_id": "dataset-" + "0" * 32}}
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        job = await gateway.queue.create(JobRequest("a-request", JobKind.REWARD_TRAINING, spec))
        code, error = await refused(score(gateway, [model(job_id=job.job_id), batch(PAIRS[:1])]))
        assert code == "FAILED_PRECONDITION"
        assert "has left no model: wait for its end" in str(error)

        claim = await gateway.queue.claim("train", "worker", timeout_s=30)
        assert claim is not None
        await gateway.queue.succeed(claim, JobResult(model_id=models.good))
        first, answer = await _all(score(gateway, [model(job_id=job.job_id), batch(PAIRS[:1])]))
        assert first.reward_model.model_id == models.good
        assert len(answer.batch.pairs) == 1

        code, error = await refused(score(gateway, [model(job_id=job.job_id, step=3)]))
        assert {each.field: each.description for each in error.violations} == {
            "reward_model.step": "the reward service serves stored models only; leave step out"
        }


async def test_models_that_cannot_score_are_refused_by_what_they_are(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    cases = [
        ({"model_id": models.causal}, "INVALID_ARGUMENT", "is a causal_lm model; give a reward model"),
        ({"model_id": NO_MODEL}, "INVALID_ARGUMENT", f"there is no model {NO_MODEL}; upload it first"),
        ({"job_id": NO_JOB}, "INVALID_ARGUMENT", f"there is no job {NO_JOB}"),
        ({"model_id": models.two_labels}, "INVALID_ARGUMENT", "has 2 labels"),
        ({"model_id": models.headless}, "FAILED_PRECONDITION", "no scoring head"),
        ({"model_id": "../../etc"}, "INVALID_ARGUMENT", "reward_model.model_id"),
        ({"job_id": job_id_of("x") + "\n"}, "INVALID_ARGUMENT", "reward_model.job_id"),
        ({}, "INVALID_ARGUMENT", "give exactly one of model_id and job_id"),
    ]
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        for reference, expected, text in cases:
            code, error = await refused(score(gateway, [model(**reference), batch(PAIRS[:1])]))
            assert (code, text in str(error)) == (expected, True), (reference, str(error))


async def test_without_a_reward_service_it_is_said_what_to_set(settings: GatewaySettings, models: Models) -> None:
    async with running(settings) as gateway:
        for responses in (False, True):
            first = ResponsesRequest(reward_model={"model_id": models.good}) if responses else model(model_id="x")
            code, error = await refused(score(gateway, [first], responses=responses))
            assert code == "FAILED_PRECONDITION"
            assert str(error).endswith("this gateway knows no reward service (set MADPO_GATEWAY_REWARD_TARGET)")


async def test_a_reward_service_that_is_away_is_soon_said_to_be(
    settings: GatewaySettings, models: Models, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_SCORER_OUTAGE_S", 0.3)
    async with gateway_of(settings, unused_tcp_port) as gateway:
        code, error = await refused(score(gateway, [model(model_id=models.good)]))
    assert code == "UNAVAILABLE"
    assert f"reward service at 127.0.0.1:{unused_tcp_port} does not answer" in str(error)


async def test_what_is_no_batch_of_usable_items_is_named_by_its_place(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    good, first = PAIRS[3], model(model_id=models.good)
    wrong_id = batch([good, good])
    wrong_id.batch.pairs[1].pair_id = "0" * 32
    no_json = batch([good])
    no_json.batch.pairs[0].options.tools_json = "{"
    large = PreferencePair("the", "x" * 3000, "y")
    cases = [
        ([batch([good])], "reward_model"),
        ([first, first], "batch"),
        ([first, batch([])], "batch.pairs"),
        ([first, batch([good] * (MAX_SCORED_ITEMS + 1))], "batch.pairs"),
        ([first, batch([good, large])], "batch.pairs[1]"),
        ([first, wrong_id], "batch.pairs[1].pair_id"),
        ([first, no_json], "batch.pairs[0].options.tools_json"),
        ([first, PairsRequest(batch={"pairs": [preference_pb2.PreferencePair()]})], "batch.pairs[0].prompt"),
        # The scorer gets batches in parts, in which it has another place.
        ([first, batch([*PAIRS[:6], PreferencePair("the", "film", "")])], "batch.pairs[6]"),
    ]
    async with start(max_pairs_per_request=3) as replica, gateway_of(settings, replica.port, max_row_bytes=2000) as it:
        for requests, field in cases:
            code, error = await refused(score(it, requests))
            assert (code, [each.field for each in error.violations]) == ("INVALID_ARGUMENT", [field]), str(error)
        many = [PreferencePair("the", f"{number} " + "x" * (MAX_SCORED_BYTES // 200), "y") for number in range(201)]
    async with start() as replica, gateway_of(settings, replica.port) as it:
        code, error = await refused(score(it, [first, batch(many)]))
        assert f"must be at most {MAX_SCORED_BYTES} bytes together" in str(error)
        code, error = await refused(score(it, [model(model_id=models.nan_on_bad), batch([PAIRS[3], BAD])]))
        assert isinstance(error, NonFiniteError)
        assert error.pair_ids == (BAD.pair_id,)


BAD = PreferencePair("the film was", "good", "bad")


async def test_hostile_rows_are_the_callers_fault(settings: GatewaySettings, start: Start, models: Models) -> None:
    chat = PreferencePair(
        (Message("user", "the film"),), (Message("assistant", "was good"),), (Message("assistant", "was bad"),)
    )
    first = model(model_id=models.good)
    seen = {"OK": 0}
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        for message in (batch([PAIRS[3]]), batch([chat]), first):
            for place, other in variants(message):
                requests = [other, batch(PAIRS[:1])] if message is first else [first, other]
                try:
                    await _all(score(gateway, requests))
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                assert code not in OURS, place
                seen[code] = seen.get(code, 0) + 1
        assert len(await _all(score(gateway, [first, batch(PAIRS)]))) == 2
    assert seen["INVALID_ARGUMENT"] > 20


async def test_another_revision_in_mid_stream_ends_it(
    settings: GatewaySettings, start: Start, models: Models, unused_tcp_port: int
) -> None:
    asked: asyncio.Queue[Any] = asyncio.Queue()

    async def requests() -> AsyncIterator[Any]:
        while (request := await asked.get()) is not None:
            yield request

    async with gateway_of(settings, unused_tcp_port) as gateway:
        async with start(port=unused_tcp_port):
            call = score(gateway, requests())
            for request in (model(model_id=models.good), batch(PAIRS[:2])):
                asked.put_nowait(request)
                assert await call.read() is not grpc.aio.EOF  # type: ignore[attr-defined]
        async with start(port=unused_tcp_port, batch_tokens=512):
            asked.put_nowait(batch(PAIRS[2:4]))
            code, error = await refused(call)
    assert code == "FAILED_PRECONDITION"
    assert isinstance(error, RevisionMismatchError)


async def test_a_stream_that_is_cancelled_costs_no_more(
    settings: GatewaySettings, start: Start, models: Models, gate: Any
) -> None:
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        await replica.client.get_reward_model(models.good)
        gate.clear()
        call = score(gateway, [model(model_id=models.good), batch(PAIRS), batch(PAIRS)])
        await call.read()
        await eventually(lambda: _waiting(replica) > 0)
        call.cancel()
        await eventually(lambda: _waiting(replica) == 0)
        await eventually(lambda: gateway.registry.get_sample_value("madpo_gateway_scoring_streams") == 0)
        gate.set()


def _waiting(replica: Replica) -> float:
    return replica.count("madpo_reward_queue_tokens")


async def test_a_stream_has_one_batch_in_work_and_all_have_few_requests(
    settings: GatewaySettings, start: Start, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, requests = Peak(), Peak()
    score_pairs, call = RewardClient.score_pairs, RewardClient._call

    async def counted_batch(self: RewardClient, *args: Any, **options: Any) -> Any:
        async with batches:
            return await score_pairs(self, *args, **options)

    async def counted_request(self: RewardClient, method: str, *args: Any) -> Any:
        if method != "ScorePairs":
            return await call(self, method, *args)
        async with requests:
            return await call(self, method, *args)

    async with start(max_pairs_per_request=4) as replica, gateway_of(settings, replica.port) as gateway:
        asked = [model(model_id=models.good), *(batch(PAIRS) for _ in range(3))]
        await _all(score(gateway, asked[:2]))
        monkeypatch.setattr(RewardClient, "score_pairs", counted_batch)
        monkeypatch.setattr(RewardClient, "_call", counted_request)
        answers = await asyncio.gather(*(_all(score(gateway, asked)) for _ in range(3)))
    assert len({str(each[1:]) for each in answers}) == 1
    assert batches.most <= 3
    assert requests.most == settings.scoring_requests


class Peak:
    """The most that went on at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __aenter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    async def __aexit__(self, *_: object) -> None:
        self.now -= 1


async def _all(call: Stream) -> Sequence[Any]:
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        answers.append(answer)
    return answers


@pytest.mark.parametrize("bound", ["max_scorings", "max_scorings_per_token"])
async def test_a_stream_too_many_is_told_when_to_come_back(
    settings: GatewaySettings, start: Start, models: Models, bound: str
) -> None:
    held = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield model(model_id=models.good)
        await held.wait()

    async with start() as replica, gateway_of(settings, replica.port, **{bound: 1}) as gateway:
        token = await make(gateway, bound.replace("_", "-"))
        first = score(gateway, requests())
        await first.read()
        code, error = await refused(score(gateway, [model(model_id=models.good)]))
        assert (code, bound in str(error)) == ("RESOURCE_EXHAUSTED", True)
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s == 5.0
        others = score(gateway, [model(model_id=models.good), batch(PAIRS[:1])], token=token)
        if bound == "max_scorings":
            assert (await refused(others))[0] == "RESOURCE_EXHAUSTED"
        else:
            assert len(await _all(others)) == 2
        held.set()
        assert await _all(first) == []
        assert len(await _all(score(gateway, [model(model_id=models.good), batch(PAIRS[:1])]))) == 2


async def test_who_may_submit_may_score_and_it_is_counted_as_calls_and_bytes_and_not_noted(
    settings: GatewaySettings, start: Start, models: Models
) -> None:
    asked = [model(model_id=models.good), batch(PAIRS[:1]), batch(PAIRS)]
    async with start() as replica, gateway_of(settings, replica.port) as gateway:
        reader, ana = await make(gateway, "reader", "read"), await make(gateway, "ana")
        ben = await make(gateway, "ben", upload_bytes_per_day=400)
        cleo = await make(gateway, "cleo", calls_per_minute=1)
        assert (await refused(score(gateway, asked, token=reader)))[0] == "PERMISSION_DENIED"
        assert len(await _all(score(gateway, asked, token=ana))) == 3
        code, error = await refused(score(gateway, [*asked, *asked[1:]], token=ben))
        assert (code, "400 bytes a day" in str(error)) == ("RESOURCE_EXHAUSTED", True)
        await _all(score(gateway, asked, token=cleo))
        assert (await refused(score(gateway, asked, token=cleo)))[0] == "RESOURCE_EXHAUSTED"
        noted = {(each.caller, each.method) for each in await records(gateway)}
        revoke = access_service_pb2.RevokeTokenRequest(name="ana")
        await gateway.ask(gateway.access.RevokeToken, revoke)
        assert (await refused(score(gateway, asked, token=ana)))[0] == "UNAUTHENTICATED"
    assert not [each for each in noted if each[1].startswith("ScoringService")]
