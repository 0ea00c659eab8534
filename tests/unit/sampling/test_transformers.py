"""Sampling: repeatable, from the policy's own distribution, with shared random numbers."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from madpo.errors import InvalidArgumentError
from madpo.jobs.sampling import SamplingParameters
from madpo.sampling.engine import Response
from madpo.sampling.prompts import encode_prompts
from madpo.sampling.transformers import TransformersEngine
from madpo.types import Content, Message, PromptOnly

MakeModel = Callable[..., Any]

PROMPTS: Sequence[Content] = ("the film", "the film was good . the film", "", (Message("user", "good film"),))


def draw(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Content] = PROMPTS,
    *,
    temperature: float = 1.0,
    batch_size: int = 64,
    **sampling: Any,
) -> list[Response]:
    parameters = SamplingParameters(**{"max_new_tokens": 8, **sampling})
    asked = [PromptOnly(prompt) for prompt in prompts]
    encoded = encode_prompts(tokenizer, asked, limit=64, max_new_tokens=parameters.max_new_tokens)
    engine = TransformersEngine(model, tokenizer, rows=batch_size)
    responses = [each for turn in engine.sample(encoded, parameters, temperature=temperature) for each in turn]
    return sorted(responses, key=lambda each: (each.prompt_index, each.sample))


def test_responses_come_in_order_of_prompts_then_samples(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    responses = draw(make_toy_lm(), make_toy_tokenizer(), samples_per_prompt=3, batch_size=5)

    assert [(each.prompt_index, each.sample) for each in responses] == [(p, s) for p in range(4) for s in range(3)]


def test_the_same_model_drawn_twice_gives_identical_responses(
    make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel
) -> None:
    tokenizer = make_toy_tokenizer()
    first = draw(make_toy_lm(seed=1), tokenizer, samples_per_prompt=4)
    torch.manual_seed(123)

    assert draw(make_toy_lm(seed=1), tokenizer, samples_per_prompt=4) == first
    assert draw(make_toy_lm(seed=1), tokenizer, samples_per_prompt=4, seed=1) != first
    assert len({tuple(each.encoded.response_ids) for each in first}) > 4


def test_batching_does_not_change_what_is_drawn(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    model, tokenizer = make_toy_lm(seed=1).double(), make_toy_tokenizer()

    alone = draw(model, tokenizer, samples_per_prompt=3, batch_size=1)

    assert draw(model, tokenizer, samples_per_prompt=3, batch_size=7) == alone


def test_similar_policies_share_their_random_numbers(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    tokenizer, policy, other = make_toy_tokenizer(), make_toy_lm(seed=1), make_toy_lm(seed=1)
    with torch.no_grad():
        other.lm_head.weight += 0.001 * torch.randn_like(other.lm_head.weight)

    same = [
        a.encoded.response_ids == b.encoded.response_ids
        for a, b in zip(
            draw(policy, tokenizer, samples_per_prompt=16), draw(other, tokenizer, samples_per_prompt=16), strict=True
        )
    ]

    assert sum(same) / len(same) > 0.9


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_models_distribution(
    temperature: float, make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel
) -> None:
    model, tokenizer = make_toy_lm(seed=5), make_toy_tokenizer()
    # Defaults that a model may bring along and that must not shape the samples.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=9.0, suppress_tokens=[8])
    prompts = ["the film"] * 40

    responses = draw(
        model, tokenizer, prompts, temperature=temperature, samples_per_prompt=64, max_new_tokens=1, batch_size=640
    )

    counts = Counter(each.encoded.response_ids[0] for each in responses)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([responses[0].encoded.prompt_ids])).logits[0, -1]
    probabilities = torch.softmax(logits / temperature, dim=-1).tolist()
    expected = [probability * len(responses) for probability in probabilities]
    chi_square = sum((counts[token] - mean) ** 2 / mean for token, mean in enumerate(expected))
    assert chi_square < 31.3  # 99.9% quantile with 11 degrees of freedom


def test_a_response_ends_with_its_first_eos(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    responses = draw(make_toy_lm(seed=1), make_toy_tokenizer(), samples_per_prompt=16)

    finished = [each for each in responses if each.finished]
    cut = [each for each in responses if not each.finished]
    assert finished
    assert cut
    assert all(each.encoded.response_ids.index(2) == len(each.encoded.response_ids) - 1 for each in finished)
    assert all(len(each.encoded.response_ids) == 8 and 2 not in each.encoded.response_ids for each in cut)
    assert all("</s>" not in each.text for each in responses)


def test_a_chat_model_may_end_its_turn_with_another_token(
    make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel
) -> None:
    model = make_toy_lm(seed=1)
    model.generation_config.eos_token_id = [2, 11]

    responses = draw(model, make_toy_tokenizer(), samples_per_prompt=16)

    assert {each.encoded.response_ids[-1] for each in responses if each.finished} == {2, 11}
    assert draw(model, make_toy_tokenizer(), samples_per_prompt=16) == responses


def test_a_response_ends_where_the_template_ends_turns(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <user> {% endfor %}"
    tokenizer = make_toy_tokenizer(template=template, additional_special_tokens=["<user>"])

    responses = draw(make_toy_lm(seed=1), tokenizer, samples_per_prompt=16)

    assert {each.encoded.response_ids[-1] for each in responses if each.finished} == {2, 4}
    assert not any(4 in each.encoded.response_ids[:-1] for each in responses)


def test_padding_with_eos_changes_nothing(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    model = make_toy_lm(seed=1).double()

    padded = draw(model, make_toy_tokenizer(), samples_per_prompt=4)

    by_eos = draw(model, make_toy_tokenizer(pad_token=None), samples_per_prompt=4)
    assert [each.encoded for each in by_eos] == [each.encoded for each in padded]


def test_an_adapter_generates_with_the_adapter_on(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(make_toy_lm(seed=1), config).eval()
    tokenizer = make_toy_tokenizer()
    with_adapter = draw(adapted, tokenizer, samples_per_prompt=8)

    assert draw(adapted.merge_and_unload(), tokenizer, samples_per_prompt=8) == with_adapter
    assert draw(make_toy_lm(seed=1), tokenizer, samples_per_prompt=8) != with_adapter


def test_a_prompt_without_room_for_the_answer_has_no_tokens_and_where_none_has_room_all_are_refused(
    make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel
) -> None:
    tokenizer, asked = make_toy_tokenizer(), [PromptOnly("the film was good . the film"), PromptOnly("the film")]

    assert encode_prompts(tokenizer, asked, limit=12, max_new_tokens=8) == [None, [1, 6, 7]]
    with pytest.raises(InvalidArgumentError, match=r"shortest prompt has 3 tokens; .*exceeds the 12 tokens that"):
        encode_prompts(tokenizer, asked, limit=12, max_new_tokens=10)


def test_a_lower_temperature_gives_likelier_responses(make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel) -> None:
    model, tokenizer = make_toy_lm(seed=1), make_toy_tokenizer()

    def entropy(temperature: float) -> float:
        drawn = draw(model, tokenizer, ["the"], temperature=temperature, samples_per_prompt=64, max_new_tokens=1)
        shares = [count / len(drawn) for count in Counter(each.encoded.response_ids[0] for each in drawn).values()]
        return -sum(share * math.log(share) for share in shares)

    assert entropy(0.1) < entropy(1.0) < entropy(5.0)


def test_temperature_0_takes_the_likeliest_token_each_time(
    make_toy_lm: MakeModel, make_toy_tokenizer: MakeModel
) -> None:
    model, tokenizer = make_toy_lm(seed=3), make_toy_tokenizer()

    first, again = draw(model, tokenizer, ["the film"], temperature=0.0, samples_per_prompt=2)

    assert first.encoded == again.encoded
    ids = [*first.encoded.prompt_ids]
    for token in first.encoded.response_ids:
        assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)
