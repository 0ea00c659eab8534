"""Slots: what is drawn there is what padded batches give, whatever ends beside it and whatever begins in its place."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from madpo.jobs.sampling import SamplingParameters
from madpo.sampling import transformers as engine_module
from madpo.sampling.engine import Draw
from madpo.sampling.slots import Row, _Step, decode
from madpo.sampling.transformers import TransformersEngine
from tests.unit.models.packed.architectures import CONFIGS, VOCABULARY, make_model

MakeModel = Callable[..., Any]

LENGTHS = (9, 1, 3, 12, 3, 7)


def make_prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def ids_drawn(
    model: Any, tokenizer: Any, *, rows: int, temperature: float, drawn: tuple[Draw, ...] = (), samples: int = 3
) -> dict[Draw, list[int]]:
    engine = TransformersEngine(model, tokenizer, rows=rows)
    sampling = SamplingParameters(samples_per_prompt=samples, max_new_tokens=14)
    turns = engine.sample(make_prompts(), sampling, temperature=temperature, drawn=drawn)
    responses = [each for turn in turns for each in turn]
    found = {Draw(each.prompt_index, each.sample): each.encoded.response_ids for each in responses}
    assert len(found) == len(responses)
    return found


@pytest.fixture
def tokenizer(make_toy_tokenizer: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ends responses with any of many tokens, so that they have many lengths."""
    tokenizer = make_toy_tokenizer()
    monkeypatch.setattr(engine_module, "end_ids", lambda *_: list(range(90, VOCABULARY)))
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: "")
    return tokenizer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_drawn_is_what_padded_batches_give(
    name: str, temperature: float, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "attention_refusal", lambda _: "it is compared with")
        expected = ids_drawn(model, tokenizer, rows=64, temperature=temperature)
    monkeypatch.setattr(engine_module, "generate", lambda *_, **__: pytest.fail("it is not drawn in slots"))
    monkeypatch.setitem(engine_module._TURN, "cpu", 4)

    for rows in (1, 3, 64):
        assert ids_drawn(model, tokenizer, rows=rows, temperature=temperature) == expected
    assert len({len(ids) for ids in expected.values()}) > (0 if temperature == 0 else 3)


def test_a_prompt_goes_through_the_model_once_for_all_its_samples_and_ended_rows_no_more(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    shapes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    prompts = make_prompts((5, 9))
    rows = [Row(prompt) for prompt in prompts for _ in range(3)]
    lengths = iter(((1, 2, 4), (3, 3, 5)))
    wanted = {
        id(row): length
        for prompt in prompts
        for row, length in zip([row for row in rows if row.prompt is prompt], next(lengths), strict=True)
    }

    def choose(logits: torch.Tensor, at_work: Any) -> torch.Tensor:
        return torch.tensor([2 if len(row.response) + 1 == wanted[id(row)] else 5 for row in at_work])

    decode(model, rows, slots=4, ends=(2,), max_new_tokens=10, choose=choose)

    assert [len(row.response) for row in rows] == [1, 2, 4, 3, 3, 5]
    # Two prompts at first (4 slots); as soon as one slot is free the second prompt's others begin; then rows end.
    assert shapes[0] == (2, 8)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 8), (1, 8), (1, 8)]
    steps = [shape[0] for shape in shapes if shape[1] == 1]
    assert sum(steps) == sum(len(row.response) for row in rows)
    assert steps == sorted(steps, reverse=True)


def test_responses_that_were_drawn_are_left_out_and_the_others_are_the_same(tokenizer: Any) -> None:
    model = make_model("qwen3", dtype=torch.float64)
    whole = ids_drawn(model, tokenizer, rows=4, temperature=1.0)
    drawn = (Draw(3, 0), Draw(3, 1), Draw(3, 2), Draw(0, 0), Draw(1, 2))

    rest = ids_drawn(model, tokenizer, rows=4, temperature=1.0, drawn=drawn)

    assert rest == {draw: ids for draw, ids in whole.items() if draw not in drawn}
    assert list(rest)[:2] == [Draw(0, 1), Draw(0, 2)]


def test_where_memory_runs_out_half_as_many_are_drawn_at_a_time(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama", dtype=torch.float64)
    expected = ids_drawn(model, tokenizer, rows=16, temperature=1.0)
    tried: list[int] = []

    def short_of_memory(*arguments: Any, slots: int, **options: Any) -> None:
        tried.append(slots)
        if slots > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        decode(*arguments, slots=slots, **options)

    monkeypatch.setattr(engine_module, "decode", short_of_memory)

    with caplog.at_level(logging.WARNING):
        found = ids_drawn(model, tokenizer, rows=16, temperature=1.0)

    assert found == expected
    assert tried == [3, 16, 8, 4, 4]  # the proof; the first turn, halved twice; the second one
    assert "sampling 4 responses at a time" in caplog.text


def test_memory_that_one_response_does_not_fit_in_ends_the_sampling(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "_disproof", lambda *_: "")
    monkeypatch.setattr(engine_module, "decode", short_of_memory)

    with pytest.raises(torch.OutOfMemoryError):
        ids_drawn(make_model("llama"), tokenizer, rows=2, temperature=1.0)


@pytest.mark.parametrize(("free", "rows"), [(None, 64), (1 << 40, 64), (300_000, 4), (10, 1)])
def test_as_many_are_at_work_as_memory_has_room_for(
    free: int | None, rows: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.sampling.room.available_bytes", lambda _: free)
    asked: list[int] = []
    monkeypatch.setattr(engine_module, "_disproof", lambda *_: "")
    monkeypatch.setattr(
        engine_module,
        "decode",
        lambda *arguments, slots, **options: asked.append(slots) or decode(*arguments, slots=slots, **options),
    )
    engine = TransformersEngine(make_model("llama"), tokenizer)
    # A token has 2 layers of keys and values, 2 groups of 8 numbers, 4 bytes each: 256 bytes; 130 of them a response.
    sampling = SamplingParameters(max_new_tokens=118)

    next(iter(engine.sample(make_prompts(), sampling, temperature=1.0)))

    assert asked[0] == rows


def _doubled(attend: Any) -> Any:
    return lambda *arguments: 2 * attend(*arguments)


def _refused(attend: Any) -> Any:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("a kernel for heads of odd size")

    return refuse


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_doubled, "LlamaForCausalLM draws otherwise in slots (0."),
        (_refused, "LlamaForCausalLM cannot decode in slots: a kernel for heads of odd size"),
    ],
)
def test_a_model_that_slots_do_not_do_for_is_drawn_from_in_padded_batches(
    change: Any, why: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ids_drawn(make_model("llama", dtype=torch.float64), tokenizer, rows=8, temperature=1.0)
    monkeypatch.setattr(_Step, "attend", change(_Step.attend))
    model = make_model("llama", dtype=torch.float64)

    with caplog.at_level(logging.WARNING):
        found = ids_drawn(model, tokenizer, rows=8, temperature=1.0)

    assert f"sampling in padded batches: {why}" in caplog.text
    assert model.config._attn_implementation == "sdpa"
    assert found == expected


def test_a_recurrent_model_is_drawn_from_in_padded_batches(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()

    with caplog.at_level(logging.INFO):
        found = ids_drawn(model, tokenizer, rows=8, temperature=1.0, samples=1)

    assert "sampling in padded batches: MambaForCausalLM does not take its attention" in caplog.text
    assert len(found) == len(LENGTHS)
