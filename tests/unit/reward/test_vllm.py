"""Our side of vLLM as a scorer: what it is asked, what is made of its answers. The real one: `test_vllm_contract`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForSequenceClassification

from madpo.errors import FailedPreconditionError, UnavailableError
from madpo.models.scores import reward_scores
from madpo_reward import scorer as module
from madpo_reward.__main__ import build
from madpo_reward.batcher import ShortOfMemoryError
from madpo_reward.encoding import Tokens
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer
from madpo_reward.settings import RewardSettings
from madpo_reward.vllm import VllmRows, engine_arguments
from tests.model_directories import save_directory

TEXTS = [Tokens((1, 6), (7,)), Tokens((1, 6), (8, 9)), Tokens((), (5,))]


@dataclass
class Requests:
    """Answers as vLLM does: some of the requests at each step, in an order of its own."""

    score: Callable[[list[int]], float] = lambda ids: float(sum(ids)) + 0.5
    going: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)
    forgot: int = 0
    forgets: bool = True
    shut: bool = False

    @property
    def engine_core(self) -> Any:
        return SimpleNamespace(shutdown=lambda: setattr(self, "shut", True))

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.asked.append((request_id, params))
        self.going[request_id] = prompt["prompt_token_ids"]

    def has_unfinished_requests(self) -> bool:
        return bool(self.going)

    def step(self) -> Sequence[Any]:
        if self.fails:
            raise self.fails.pop()
        name = max(self.going)
        data = torch.tensor([self.score(self.going.pop(name))])
        waiting = [SimpleNamespace(request_id=each, finished=False) for each in self.going]
        return [*waiting, SimpleNamespace(request_id=name, finished=True, outputs=SimpleNamespace(data=data))]

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.going.pop(name, None)

    def reset_prefix_cache(self) -> bool:
        self.forgot += 1
        return self.forgets and not self.going


def rows(requests: Requests) -> VllmRows:
    return VllmRows(requests, parameters=dict, max_tokens=64, name="vllm, of a test")


def score(layout: VllmRows, texts: Sequence[Tokens] = TEXTS) -> list[float]:
    return [reward for rewards in layout.prepare(layout.plan(texts))() for reward in rewards]


def test_each_text_is_a_request_for_its_raw_logit_and_lands_where_it_belongs() -> None:
    requests = Requests()
    layout = rows(requests)

    assert score(layout) == [14.5, 24.5, 5.5]
    assert score(layout, TEXTS[::-1]) == [5.5, 24.5, 14.5]
    assert len({name for name, _ in requests.asked}) == 6
    assert all(asked == {"task": "classify", "use_activation": False} for _, asked in requests.asked)


def test_a_step_that_fails_leaves_nothing_that_vllm_would_take_as_computed() -> None:
    requests = Requests(fails=[RuntimeError("out of memory")])
    layout = rows(requests)

    with pytest.raises(RuntimeError):
        score(layout)

    assert (requests.going, requests.forgot) == ({}, 1)
    assert score(layout) == [14.5, 24.5, 5.5]


def test_what_vllm_cannot_forget_is_not_scored_with() -> None:
    layout = rows(Requests(fails=[RuntimeError("broken")], forgets=False))

    with pytest.raises(RuntimeError):
        score(layout)
    with pytest.raises(UnavailableError, match="vLLM cannot forget a step that failed"):
        score(layout)


def test_requests_that_get_no_score_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests()
    monkeypatch.setattr(Requests, "has_unfinished_requests", lambda self: len(self.going) > 1)

    with pytest.raises(UnavailableError, match="vLLM ended 1 of 3 requests without a score"):
        score(rows(requests))
    assert not requests.going


def test_less_is_handed_over_at_a_time_where_memory_ran_out() -> None:
    layout = rows(Requests())
    before = layout.plan(TEXTS)[0].shape.positions

    assert layout.shrink()
    assert layout.plan(TEXTS)[0].shape.positions == before // 2
    while layout.shrink():
        pass
    assert layout.plan(TEXTS)[0].shape.positions == 512


@pytest.mark.parametrize("on_gpu", [True, False])
def test_arguments_say_what_is_scored_and_options_go_before_them(on_gpu: bool) -> None:
    arguments = engine_arguments(
        Path("/models/reward"),
        precision="bf16",
        max_tokens=96,
        memory_share=0.4,
        on_gpu=on_gpu,
        options={"tensor_parallel_size": 2, "max_num_batched_tokens": 128},
    )

    assert arguments["model"] == "/models/reward"
    assert (arguments["runner"], arguments["dtype"], arguments["max_model_len"]) == ("pooling", "bfloat16", 96)
    assert (arguments["gpu_memory_utilization"], arguments["max_num_batched_tokens"]) == (0.4, 128)
    assert ("enforce_eager" in arguments) is not on_gpu


@pytest.fixture
def load(tmp_path: Path, make_toy_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a scorer over `Requests` that the model itself answers, but for what is given."""
    tokenizer = make_toy_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, num_labels=1, **sizes)
    model = LlamaForSequenceClassification(config).eval()
    save_directory(model, tokenizer, tmp_path / "model")

    @torch.inference_mode()
    def plain(ids: list[int]) -> float:
        row = torch.tensor([ids])
        return float(reward_scores(model, row, torch.ones_like(row)))

    def load(requests: Requests | Exception | None = None, **fields: Any) -> tuple[Scorer, Requests]:
        answering = requests or Requests(score=plain)

        def load_rows(arguments: Any, *, max_tokens: int, options: Any) -> VllmRows:
            if isinstance(answering, Exception):
                raise answering
            return VllmRows(answering, parameters=dict, max_tokens=max_tokens, name=f"vllm {options}")

        monkeypatch.setattr(module, "load_rows", load_rows)
        asked = ScorerConfig(engine="vllm", max_tokens=128, **fields)
        return load_scorer("model-1", tmp_path / "model", base_directory=None, config=asked), answering  # type: ignore[return-value]

    return load


def test_a_model_that_agrees_with_a_plain_forward_pass_serves_under_a_revision_of_its_own(load: Any) -> None:
    scorer, _ = load()
    other, _ = load(vllm_options={"block_size": 16})

    assert scorer._model is None
    assert scorer.describe(max_pairs_per_request=1).max_tokens == 128
    assert scorer.revision != other.revision


def test_a_model_that_vllm_scores_otherwise_is_refused_and_its_memory_given_back(load: Any) -> None:
    requests = Requests(score=lambda ids: 0.75)

    with pytest.raises(FailedPreconditionError, match=r"plain forward pass .*MADPO_REWARD_ENGINE=transformers may"):
        load(requests)
    assert requests.shut


def test_a_model_that_vllm_does_not_take_is_refused_with_the_engine_that_may(load: Any) -> None:
    with pytest.raises(FailedPreconditionError, match=r"'ToyForScores' .*MADPO_REWARD_ENGINE=transformers may take"):
        load(KeyError("ToyForScores"))


def test_a_lack_of_memory_is_told_as_one(load: Any) -> None:
    with pytest.raises(ShortOfMemoryError, match="not enough memory"):
        load(torch.OutOfMemoryError("CUDA out of memory"))
    scorer, requests = load()
    requests.fails.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ShortOfMemoryError):
        scorer.forward(scorer.sample())


def settings(tmp_path: Path, **fields: Any) -> RewardSettings:
    return RewardSettings(store_url=f"file://{tmp_path}", cache=tmp_path / "cache", **fields)


def test_vllm_runs_one_model_in_a_process(tmp_path: Path) -> None:
    assert settings(tmp_path, engine="vllm").resident_models == 1
    assert settings(tmp_path).resident_models == 2
    with pytest.raises(ValidationError, match="max_resident_models must be 1 with engine vllm"):
        settings(tmp_path, engine="vllm", max_resident_models=2)
    with pytest.raises(ValidationError, match="batch_tokens is of the engine transformers"):
        settings(tmp_path, engine="vllm", batch_tokens=512)


def test_a_service_without_the_engine_that_it_is_to_use_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.config.find_spec", lambda _: None)

    with pytest.raises(FailedPreconditionError, match=r"MADPO_REWARD_ENGINE=vllm, but vLLM is not .*'madpo\[vllm\]'"):
        build(settings(tmp_path, engine="vllm"), CollectorRegistry())
