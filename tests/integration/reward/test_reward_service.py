"""The reward service end to end: real server, real client, real (tiny) reward models, a real object store."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from madpo import errors
from madpo.data.order import Schedule
from madpo.data.tokenize import encode_response
from madpo.jobs.methods import MarginParameters
from madpo.models.load import reward_scores, save_model
from madpo.rpc.channel import MESSAGE_LIMIT_BYTES, call_metadata
from madpo.rpc.convert import pair_to_proto
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.rpc.status import from_rpc_error
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import ChatOptions, Message, PreferencePair, ToolCall, content_digest
from madpo.v1 import reward_service_pb2 as reward
from madpo.v1.reward_service_pb2_grpc import RewardServiceStub
from madpo_reward.scorer import Scorer
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.remote import RemoteMargins

TOKEN = "test-token"
POSITIONS = 128
WORDS = ("the", "film", "was", "good", ".")
PAIRS = [
    PreferencePair(
        prompt=" ".join(itertools.islice(itertools.cycle(WORDS), n % 7)),
        chosen=" ".join(itertools.islice(itertools.cycle(WORDS), n % 3, 1 + n)),
        rejected=" ".join(itertools.islice(itertools.cycle(WORDS), 1 + (n * n) % 90)),
    )
    for n in range(24)
]


@dataclass(frozen=True)
class Models:
    """A store with the models under test."""

    url: str
    directory: Path
    tokenizer: Any
    good: str
    other: str
    two_labels: str
    headless: str
    causal: str
    nan_on_bad: str
    broken: str


def llama_config(tokenizer: Any, **options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Models:
    root = tmp_path_factory.mktemp("reward")
    tokenizer = make_toy_tokenizer()
    store = ModelStore(LocalStore(root / "store"), root / "publisher")

    def publish(name: str, model: Any, *, kind: str = "reward", pretend: str | None = None) -> str:
        save_model(model, tokenizer, root / name)
        if pretend is not None:
            path = root / name / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [pretend], "num_labels": 1}))
        return store.publish(root / name, display_name=name, kind=kind)[0].model_id

    def reward_model(seed: int, labels: int = 1) -> Any:
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=labels))
        # The default initialisation is too flat for wrong sums to show in the last bits.
        torch.nn.init.normal_(model.score.weight)
        return model

    nan_on_bad = reward_model(2)
    nan_on_bad.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("bad")] = torch.nan
    broken = reward_model(3)
    broken.score.weight.data.fill_(torch.nan)
    causal = LlamaForCausalLM(llama_config(tokenizer))
    return Models(
        url=f"file://{root / 'store'}",
        directory=root / "good",
        tokenizer=tokenizer,
        good=publish("good", reward_model(0)),
        other=publish("other", reward_model(1)),
        two_labels=publish("two-labels", reward_model(1, labels=2)),
        headless=publish("headless", causal, pretend="LlamaForSequenceClassification"),
        causal=publish("causal", causal, kind="causal_lm"),
        nan_on_bad=publish("nan-on-bad", nan_on_bad),
        broken=publish("broken", broken),
    )


@dataclass
class Replica:
    """A running server, its metrics and a client of it."""

    port: int
    registry: CollectorRegistry
    client: RewardClient

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def forwards(self) -> float:
        return self.count("madpo_reward_score_duration_seconds_count", phase="forward")


Start = Callable[..., Any]


@pytest.fixture
def start(models: Models, tmp_path: Path) -> Start:
    """Starts a replica with its own cache directory, unpadded as for models of real size; options are settings."""
    numbers = itertools.count()

    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[Replica]:
        options = {"batch_tokens": 0, "cache": tmp_path / f"cache-{next(numbers)}"} | options
        settings = RewardSettings(store_url=models.url, token=TOKEN, grace_s=5, **options)
        registry = CollectorRegistry()
        service = RewardService(settings, registry)
        async with RunningServer(service, settings, token=TOKEN, registry=registry) as server:
            client = RewardClient(f"127.0.0.1:{server.port}", token=TOKEN, timeout_s=30)
            try:
                yield Replica(server.port, registry, client)
            finally:
                await client.close()

    return start


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Forward passes wait while it is cleared."""
    gate = threading.Event()
    gate.set()
    forward = Scorer.forward

    def gated(self: Scorer, units: Sequence[Any]) -> list[list[float]]:
        assert gate.wait(timeout=30)
        return forward(self, units)

    monkeypatch.setattr(Scorer, "forward", gated)
    yield gate
    gate.set()


def plain_score(models: Models, prompt: Any, response: Any, *, last_tokens: int = 0) -> float:
    """What transformers itself gives one text, unpadded and alone."""
    model = LlamaForSequenceClassification.from_pretrained(models.directory).eval()
    encoded = encode_response(models.tokenizer, prompt, response)
    ids = [*encoded.prompt_ids, *encoded.response_ids][-last_tokens:]
    with torch.inference_mode():
        return float(model(torch.tensor([ids])).logits[0, 0])


def pair_rewards(scored: Sequence[Any]) -> dict[str, tuple[float, float]]:
    return {score.pair_id: (score.chosen_reward, score.rejected_reward) for score in scored}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


# ---- scores


async def test_scores_are_those_of_a_plain_transformers_forward_pass(start: Start, models: Models) -> None:
    chat = PreferencePair(
        prompt=(Message("user", "the film"),),
        chosen=(Message("assistant", "was good"),),
        rejected=(Message("assistant", "was ."),),
    )
    async with start() as replica:
        scored = await replica.client.score_pairs(models.good, [*PAIRS[:6], chat])

    for pair, score in zip([*PAIRS[:6], chat], scored, strict=True):
        assert score.pair_id == pair.pair_id
        assert score.chosen_reward == pytest.approx(plain_score(models, pair.prompt, pair.chosen), abs=1e-5)
        assert score.rejected_reward == pytest.approx(plain_score(models, pair.prompt, pair.rejected), abs=1e-5)
        assert score.chosen_tokens == len(encode_response(models.tokenizer, pair.prompt, pair.chosen))
        assert not score.chosen_truncated


async def test_a_pair_with_tools_and_template_arguments_is_scored_under_its_own_id(
    start: Start, models: Models
) -> None:
    """The toy template writes neither, so that the score is that of a chat without them; its id is another."""
    calling = Message("assistant", "was good", (ToolCall("look", '{"at":"film"}', "c1"),))
    pair = PreferencePair((Message("user", "the film"),), (calling,), (Message("assistant", "was ."),))
    options = ChatOptions('[{"type":"function","function":{"name":"look"}}]', '{"mood":"good"}')
    given = replace(pair, options=options)
    async with start() as replica:
        plain, scored = await replica.client.score_pairs(models.good, [pair, given])
        (response,) = await replica.client.score_responses(
            models.good, [(given.prompt, given.chosen)], options=[options]
        )

    assert (plain.pair_id, scored.pair_id) == (pair.pair_id, given.pair_id)
    assert plain.pair_id != scored.pair_id
    assert (plain.chosen_reward, plain.rejected_reward) == (scored.chosen_reward, scored.rejected_reward)
    assert response.response_id == content_digest(given.prompt, given.chosen, options=options)
    assert response.reward == scored.chosen_reward


@pytest.mark.parametrize("batch_tokens", [0, 512], ids=["shared prompts", "padded rows"])
async def test_scores_are_the_same_bits_alone_in_any_company_and_on_another_replica(
    start: Start, models: Models, batch_tokens: int
) -> None:
    def texts_of(pair: PreferencePair) -> list[Any]:
        return [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]

    options = {"cache_entries": 0, "batch_tokens": batch_tokens}
    async with start(**options) as replica, start(**options) as another:
        together = pair_rewards(await replica.client.score_pairs(models.good, PAIRS))
        alone = [await replica.client.score_pairs(models.good, [pair]) for pair in PAIRS]
        crowded = await asyncio.gather(
            *[another.client.score_pairs(models.good, PAIRS[n::5][::-1]) for n in range(5)],
            another.client.score_pairs(models.good, [PreferencePair(".", "good", "bad " * n) for n in range(1, 30)]),
        )
        responses = await another.client.score_responses(models.good, texts_of(PAIRS[3]))
        revisions = {(await server.client.get_reward_model(models.good)).revision for server in (replica, another)}

    assert pair_rewards(itertools.chain.from_iterable(alone)) == together
    others = pair_rewards(itertools.chain.from_iterable(crowded))
    assert {pair_id: others[pair_id] for pair_id in together} == together
    assert tuple(score.reward for score in responses) == together[PAIRS[3].pair_id]
    assert len(set(together.values())) == len(PAIRS)
    assert len(revisions) == 1


async def test_every_padded_forward_pass_has_a_shape_of_the_ladder_and_some_padding(
    start: Start, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, unpadded = set(), []

    def recorded(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(input_ids.shape))
        unpadded.append(bool(attention_mask.all()))
        return reward_scores(model, input_ids, attention_mask)

    endless = [("", " ".join(itertools.islice(itertools.cycle(WORDS), n, n + 2 * POSITIONS))) for n in range(8)]
    async with start(max_tokens=96, batch_tokens=400) as replica:
        await replica.client.get_reward_model(models.good)
        monkeypatch.setattr("madpo_reward.layouts.reward_scores", recorded)
        await replica.client.score_pairs(models.good, PAIRS)
        filled = await replica.client.score_responses(models.good, endless)

    assert shapes == {(12, 32), (4, 64), (4, 96)}
    assert not any(unpadded)
    assert {(score.tokens, score.truncated) for score in filled} == {(95, True)}


async def test_long_texts_lose_the_start_of_the_prompt_and_are_flagged(start: Start, models: Models) -> None:
    prompt, response = "the film was " * 60, "good ."
    async with start() as replica:
        info = await replica.client.get_reward_model(models.good)
        (scored,) = await replica.client.score_responses(models.good, [(prompt, response)])

    assert info.max_tokens == POSITIONS
    assert (scored.tokens, scored.truncated) == (info.max_tokens, True)
    kept = plain_score(models, prompt, response, last_tokens=info.max_tokens)
    assert scored.reward == pytest.approx(kept, abs=1e-5)


async def test_known_texts_are_answered_from_the_cache(start: Start, models: Models) -> None:
    async with start() as replica:
        first = await replica.client.score_pairs(models.good, PAIRS[1:5])
        forwards = replica.forwards
        again = await replica.client.score_pairs(models.good, PAIRS[1:5])
        assert replica.forwards == forwards > 0
        await replica.client.score_pairs(models.other, PAIRS[1:5])

        assert replica.forwards > forwards
        assert replica.count("madpo_reward_responses_total", source="cache") == 8
        assert replica.count("madpo_reward_responses_total", source="model") == 16
        assert replica.count("madpo_reward_pairs_total", outcome="scored") == 12
    assert again == first


async def test_a_second_epoch_and_a_second_job_compute_no_score(start: Start, models: Models, tmp_path: Path) -> None:
    schedule = Schedule.plan(rows=len(PAIRS), batch_size=4, seed=0, epochs=3, max_steps=None)
    scores = {content_digest(pair.prompt, text) for pair in PAIRS for text in (pair.chosen, pair.rejected)}

    async with start() as replica:
        info = await replica.client.get_reward_model(models.good)

        async def train(job: int) -> list[Any]:
            margins = RemoteMargins(
                PAIRS,
                schedule,
                connect=lambda: RewardClient(f"127.0.0.1:{replica.port}", token=TOKEN),
                model_id=models.good,
                revision=info.revision,
                journal=MarginJournal(LocalStore(tmp_path / "journals"), job_id=f"job-{job:032}", attempt=1),
                parameters=MarginParameters(reward_model={"model_id": models.good}),
                interrupted=lambda: False,
            )
            margins.start(0)
            taken = [await asyncio.to_thread(margins.take, step) for step in range(schedule.total_steps)]
            await asyncio.to_thread(margins.close)
            return taken

        first = await train(1)
        computed = replica.count("madpo_reward_responses_total", source="model")
        served = replica.count("madpo_reward_pairs_total", outcome="scored")
        second = await train(2)

        assert computed == replica.count("madpo_reward_responses_total", source="model") == len(scores)
        assert (served, replica.count("madpo_reward_pairs_total", outcome="scored")) == (len(PAIRS), 2 * len(PAIRS))
    assert first == second


# ---- refusals


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


async def test_a_non_finite_score_names_its_pair_and_spares_the_neighbours(start: Start, models: Models) -> None:
    poisoned = PreferencePair("the film", "was good", "was bad")
    async with start() as replica:
        with pytest.raises(errors.NonFiniteError, match=poisoned.pair_id) as refused:
            await replica.client.score_pairs(models.nan_on_bad, [PAIRS[1], poisoned, PAIRS[2]])
        scored = await replica.client.score_pairs(models.nan_on_bad, [PAIRS[1], PAIRS[2]])

    assert refused.value.pair_ids == (poisoned.pair_id,)
    assert len(scored) == 2


# ---- load, cancellation, size


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


async def test_a_cancelled_request_costs_no_forward_pass(start: Start, models: Models, gate: threading.Event) -> None:
    async with start(cache_entries=0) as replica:
        await replica.client.get_reward_model(models.good)
        gate.clear()
        held = asyncio.create_task(replica.client.score_responses(models.good, [("the", "film")]))
        await until(lambda: replica.count("madpo_reward_queue_tokens") > 0)
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


async def test_a_pair_too_large_for_a_message_is_refused_before_it_is_sent(models: Models) -> None:
    large = PreferencePair("the", "good", "x" * MESSAGE_LIMIT_BYTES)
    async with RewardClient("127.0.0.1:1", timeout_s=3) as nobody:
        with pytest.raises(errors.InvalidPairError, match=large.pair_id):
            await nobody.score_pairs(models.good, [large])
        with pytest.raises(errors.UnavailableError, match="does not answer"):
            await nobody.score_pairs(models.good, PAIRS[:1])


# ---- revisions and replicas


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


async def test_losing_and_draining_replicas_under_load_fails_no_call(
    processes: dict[int, subprocess.Popen[bytes]], models: Models
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
