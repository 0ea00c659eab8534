"""What models and texts of no good will, and the end of processes, may do to a scorer: nothing to anybody else."""

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from madpo import errors
from madpo.data.tokenizer_process import Limits, TokenizerProcess
from madpo.rpc.channel import call_metadata
from madpo.rpc.status import from_rpc_error
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import Message
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub
from madpo_reward.batcher import Unit
from madpo_reward.encoding import Tokens
from madpo_reward.layouts import SharedPrompts
from madpo_reward.service import RewardService
from tests.integration.reward.service import PAIRS, TOKEN, Models, Replica, Start, pair_rewards, tokenizing_pids, until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SCORE_PAIRS = "/madpo.v1.RewardService/ScorePairs"
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
        return {path.name for path in (tmp_path / "cache").glob("models/*") if path.is_dir()}

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
            (MemoryError(), errors.OverloadedError),
            (KeyError("rope_theta"), errors.FailedPreconditionError),
        ):
            monkeypatch.setattr("madpo_reward.service.load_scorer", Mock(side_effect=fault))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
                request = reward.GetRewardModelRequest(model_id=models.good)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await RewardServiceStub(channel).GetRewardModel(request, timeout=60, metadata=call_metadata(TOKEN))
            assert type(from_rpc_error(refused.value)) is kind
            assert f"{models.good} cannot be loaded" in str(refused.value)


async def health(replica: Replica) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return int(answer.status)


async def until_health_is(replica: Replica, status: int) -> None:
    async with asyncio.timeout(60):
        while await health(replica) != status:
            await asyncio.sleep(0.02)


@pytest.mark.promise("G7")
async def test_health_says_whether_texts_can_be_scored(
    start: Start, models: Models, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.rpc.server._PULSE_S", 0.01)
    async with start(max_stall_s=0.5) as replica:
        await replica.client.get_reward_model(models.good)
        gate.clear()  # a forward pass hangs
        held = asyncio.create_task(replica.client.score_responses(models.good, [("the", "film")]))
        await until_health_is(replica, NOT_SERVING)
        gate.set()
        await held
        await until_health_is(replica, SERVING)


@pytest.mark.promise("G7")
async def test_health_says_when_a_load_hangs_though_others_score(
    start: Start, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.rpc.server._PULSE_S", 0.01)
    goes_on = threading.Event()

    def hang(*args: object, **fields: object) -> None:
        goes_on.wait(60)
        raise errors.UnavailableError("the disk was away")

    async with start(max_load_stall_s=4, cache_entries=0) as replica:
        await replica.client.get_reward_model(models.good)
        monkeypatch.setattr("madpo_reward.service.load_scorer", hang)
        held = asyncio.create_task(replica.client.get_reward_model(models.other))
        held.add_done_callback(lambda done: done.exception())
        await until_health_is(replica, NOT_SERVING)
        await replica.client.score_responses(models.good, [("the", "film")])
        assert await health(replica) == NOT_SERVING
        goes_on.set()
        await until_health_is(replica, SERVING)
        held.cancel()


@pytest.mark.promise("G7")
async def test_health_says_when_every_forward_pass_fails_and_not_when_some_do(
    start: Start,
    models: Models,
    failing: dict[str, Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks: list[str | None] = []
    look = RewardService.ailment

    async def noted(self: RewardService) -> str | None:
        looks.append(await look(self))
        return looks[-1]

    monkeypatch.setattr(RewardService, "ailment", noted)
    monkeypatch.setattr("madpo.rpc.server._PULSE_S", 0.01)
    async with start(cache_entries=0) as replica:
        await until(lambda: len(looks) > 2)  # no model is there yet
        await replica.client.get_reward_model(models.good)
        failing["bad"] = IndexError("index out of range in self")
        for _ in range(3):
            with pytest.raises(errors.FailedPreconditionError):
                await replica.client.score_responses(models.good, [("the", "bad film")])
        before = len(looks)
        await until(lambda: len(looks) > before + 2)
        assert set(looks) == {None}
        assert await health(replica) == SERVING

        failing["</s>"] = RuntimeError("device-side assert triggered")  # whatever comes
        await until_health_is(replica, NOT_SERVING)
        said = [record.__dict__["ailment"] for record in caplog.records if record.message == "cannot work"]
        assert "device-side assert" in said[0]
        failing.clear()
        await until_health_is(replica, SERVING)


def hostile(models: Models, tmp_path: Path, template: str) -> str:
    """The good model, published with another template."""
    directory = Path(shutil.copytree(models.directory, tmp_path / "hostile"))
    (directory / "chat_template.jinja").write_text(template)
    store = ModelStore(LocalStore(Path(models.url.removeprefix("file://"))), tmp_path / "publisher")
    return store.publish(directory, display_name="hostile", kind="reward")[0].model_id


@pytest.fixture
def hasty_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = partial(TokenizerProcess, limits=Limits(text_cpu_s=1, wall_per_cpu=100))
    monkeypatch.setattr("madpo_reward.scorer.TokenizerProcess", limited)


async def ask_beside(replica: Replica, models: Models, annoy: Callable[[], Awaitable[object]]) -> list[Exception]:
    """Have a good model score again and again, each time within a deadline, while another is asked; what that gave."""
    told: list[Exception] = []
    over = asyncio.Event()

    async def go_on() -> None:
        while not over.is_set():
            try:
                await annoy()
            except errors.MadpoError as error:
                told.append(error)

    expected = pair_rewards(await replica.client.score_pairs(models.good, PAIRS[:4]))
    hostility = [asyncio.create_task(go_on()) for _ in range(3)]
    while len(told) < 3:
        scored = await asyncio.wait_for(replica.client.score_pairs(models.good, PAIRS[:4]), 30)
        assert pair_rewards(scored) == expected
    over.set()
    await asyncio.wait(hostility)
    return told


@pytest.mark.promise("H6")
@pytest.mark.usefixtures("hasty_limits")
async def test_a_template_that_hangs_holds_up_its_own_model_alone(start: Start, models: Models, tmp_path: Path) -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    chat = "{% for m in messages %}{% if m.content == 'bad' %}" + loop + "{% endif %}{{ m.content }} {% endfor %}"
    model_id = hostile(models, tmp_path, chat)
    texts = ((Message("user", "bad"),), (Message("assistant", "film"),))
    async with start(cache_entries=0, max_resident_models=2) as replica:
        await replica.client.get_reward_model(model_id)
        told = await ask_beside(replica, models, lambda: replica.client.score_responses(model_id, [texts]))

        assert replica.count("madpo_rpc_calls_total", method=SCORE_PAIRS, code="RESOURCE_EXHAUSTED") == 0
        assert replica.count("madpo_reward_pairs_total", outcome="refused") == 0
    assert {type(error) for error in told} == {errors.InvalidArgumentError}
    assert all("went beyond 1 s of processor time" in str(error) for error in told)


@pytest.mark.promise("H6")
@pytest.mark.usefixtures("hasty_limits")
async def test_a_model_whose_load_hangs_is_refused_beside_a_good_one(
    start: Start, models: Models, tmp_path: Path
) -> None:
    model_id = hostile(
        models, tmp_path, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    async with start(cache_entries=0, max_resident_models=2) as replica:
        await replica.client.get_reward_model(models.good)
        told = await ask_beside(replica, models, lambda: replica.client.get_reward_model(model_id))

        assert (await replica.client.get_reward_model(models.other)).model_id == models.other
    assert all("went beyond 1 s of processor time" in str(error) for error in told)
