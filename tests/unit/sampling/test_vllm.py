"""Our side of vLLM: what it is asked, and what is made of its answers. `bench.sampling.run` runs the real one."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from madpo.errors import FailedPreconditionError, UnavailableError
from madpo.jobs.sampling import SamplingParameters
from madpo.sampling.engine import Draw, SamplingEngine
from madpo.sampling.vllm import VllmEngine, engine_arguments, load_engine, request_options

ENDS = [2, 5]
PROMPTS = [[1, 6], [1, 6, 7, 8], [1], [1, 9, 9]]


@dataclass
class Requests:
    """Answers as vLLM does: each request from its own seed, some of them at each step, in an order of its own."""

    reason: Callable[[list[int]], str] = lambda ids: "stop" if ids[-1] in ENDS else "length"
    going: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, list[int], dict[str, Any]]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    steps: int = 0

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        assert request_id not in self.going
        self.asked.append((request_id, prompt["prompt_token_ids"], params))
        self.going[request_id] = SimpleNamespace(
            params=params, ids=[], source=random.Random(f"{params['seed']} {prompt['prompt_token_ids']}")
        )

    def has_unfinished_requests(self) -> bool:
        return bool(self.going)

    def step(self) -> Sequence[Any]:
        self.steps += 1
        outputs = []
        for name in sorted(self.going, reverse=True)[:3]:
            request = self.going[name]
            request.ids.append(request.source.randrange(2, 12))
            params = request.params
            finished = request.ids[-1] in params["stop_token_ids"] or len(request.ids) == params["max_tokens"]
            if finished:
                del self.going[name]
            completion = SimpleNamespace(
                token_ids=tuple(request.ids), finish_reason=self.reason(request.ids) if finished else None
            )
            outputs.append(SimpleNamespace(request_id=name, outputs=[completion], finished=finished))
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            self.going.pop(name, None)


@pytest.fixture
def draw(make_toy_tokenizer: Callable[..., Any]) -> Callable[..., dict[Draw, Any]]:
    def draw(
        requests: Requests,
        prompts: list[list[int]] = PROMPTS,
        *,
        temperature: float = 1.0,
        check: Any = None,
        **asked: Any,
    ) -> dict[Draw, Any]:
        engine: SamplingEngine = VllmEngine(
            requests, make_toy_tokenizer(), ends=ENDS, parameters=dict, check=check or (lambda: None)
        )
        drawn = asked.pop("drawn", ())
        sampling = SamplingParameters(**{"samples_per_prompt": 3, "max_new_tokens": 6, **asked})
        turns = engine.sample(prompts, sampling, temperature=temperature, drawn=drawn)
        return {Draw(each.prompt_index, each.sample): each for turn in turns for each in turn}

    return draw


def test_each_response_is_a_request_with_a_seed_of_its_own_and_lands_where_it_belongs(draw: Any) -> None:
    requests = Requests()

    responses = draw(requests)

    assert set(responses) == {Draw(prompt, sample) for prompt in range(4) for sample in range(3)}
    by_name = {name: (prompt, params) for name, prompt, params in requests.asked}
    assert len({params["seed"] for _, params in by_name.values()}) == 12
    assert all(0 <= params["seed"] < 2**63 for _, params in by_name.values())
    for place, response in responses.items():
        prompt, params = by_name[f"{place.prompt_index}-{place.sample}"]
        assert response.encoded.prompt_ids == prompt == PROMPTS[place.prompt_index]
        expected = random.Random(f"{params['seed']} {prompt}")
        assert response.encoded.response_ids == [expected.randrange(2, 12) for _ in response.encoded.response_ids]
        assert response.finished == (response.encoded.response_ids[-1] in ENDS)
    assert {each.finished for each in responses.values()} == {True, False}


def test_the_draw_of_a_response_depends_on_no_other(draw: Any) -> None:
    whole = draw(Requests())
    drawn = [Draw(0, 1), Draw(3, 0), Draw(3, 2)]

    assert draw(Requests(), drawn=drawn) == {place: each for place, each in whole.items() if place not in drawn}
    assert draw(Requests(), samples_per_prompt=1) == {place: each for place, each in whole.items() if not place.sample}
    assert draw(Requests(), PROMPTS[:2]) == {place: each for place, each in whole.items() if place.prompt_index < 2}
    assert draw(Requests(), seed=1) != whole


def test_the_whole_vocabulary_is_sampled_and_only_our_ends_end_a_response() -> None:
    sampling = SamplingParameters(max_new_tokens=6, seed=4)

    options = request_options(Draw(2, 1), sampling, temperature=0.7, ends=ENDS)

    assert options["seed"] != request_options(Draw(1, 2), sampling, temperature=0.7, ends=ENDS)["seed"]
    del options["seed"]
    assert options == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 6,
        "stop_token_ids": ENDS,
        "ignore_eos": True,
        "detokenize": False,
    }


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_response_that_ended_otherwise_is_none_of_the_policys(reason: str | None, draw: Any) -> None:
    requests = Requests(reason=lambda ids: reason if len(ids) == 6 else "stop")  # type: ignore[arg-type, return-value]

    with pytest.raises(UnavailableError, match=f"vLLM ended a response of 6 tokens for the reason {reason!r}"):
        draw(requests)
    assert not requests.going


def test_a_stop_that_is_none_of_ours_is_refused(draw: Any) -> None:
    with pytest.raises(UnavailableError, match="for the reason 'stop'"):
        draw(Requests(reason=lambda _: "stop"))


def test_requests_that_get_no_answer_are_missed(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requests, "has_unfinished_requests", lambda self: self.steps < 3)

    with pytest.raises(UnavailableError, match=r"vLLM ended \d+ of 12 requests without an answer"):
        draw(Requests())


def test_who_is_asked_to_stop_takes_his_requests_along(draw: Any) -> None:
    class StopError(Exception):
        pass

    requests = Requests()

    def check() -> None:
        if requests.steps == 4:
            raise StopError

    with pytest.raises(StopError):
        draw(requests, check=check)
    assert requests.aborted
    assert not requests.going


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_is_asked_for_goes_before_what_is_set(on_gpu: bool) -> None:
    arguments = engine_arguments(
        Path("/models/policy"),
        precision="bf16",
        max_tokens=700,
        memory_share=0.4,
        on_gpu=on_gpu,
        options={"tensor_parallel_size": 2, "enable_chunked_prefill": True},
    )

    assert arguments["model"] == "/models/policy"
    assert (arguments["dtype"], arguments["max_model_len"]) == ("bfloat16", 700)
    assert (arguments["generation_config"], arguments["skip_tokenizer_init"]) == ("vllm", True)
    assert (arguments["tensor_parallel_size"], arguments["enable_chunked_prefill"]) == (2, True)
    assert ("enforce_eager" in arguments) is not on_gpu


def test_vllm_that_does_not_take_a_model_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("Model architectures ['ToyForCausalLM'] are not supported for now.")

    module = SimpleNamespace(EngineArgs=refuse, LLMEngine=SimpleNamespace(from_engine_args=None), SamplingParams=dict)
    monkeypatch.setitem(__import__("sys").modules, "vllm", module)
    monkeypatch.setattr("os.environ", {})

    with pytest.raises(FailedPreconditionError, match="vLLM does not take this model or these options: Model arch"):
        load_engine({"model": "/models/policy"})
