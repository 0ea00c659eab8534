from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from tokenizers import processors

from madpo.data import tokenize
from madpo.data.tokenize import (
    Encoded,
    encode_prompt,
    encode_response,
    pad_id,
    render_chat,
    template_sha256,
    tokenizer_sha256,
)
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import NO_OPTIONS, ChatOptions, Message, ToolCall

Make = Callable[..., Any]
USER = (Message("user", "the film"),)
GOOD = (Message("assistant", "was good"),)


def test_a_text_pair_has_one_bos_and_one_eos(make_toy_tokenizer: Make) -> None:
    encoded = encode_response(make_toy_tokenizer(), "the film", "was good")

    assert encoded == Encoded(prompt_ids=[1, 6, 7], response_ids=[8, 9, 2])


@pytest.mark.parametrize("prompt", ["<s> the film", "the film"])
def test_a_bos_in_the_text_is_not_doubled(make_toy_tokenizer: Make, prompt: str) -> None:
    assert encode_prompt(make_toy_tokenizer(), prompt) == [1, 6, 7]


def test_an_eos_in_the_response_is_not_doubled(make_toy_tokenizer: Make) -> None:
    assert encode_response(make_toy_tokenizer(), "the", "film </s>").response_ids == [7, 2]


def test_an_empty_response_is_an_eos(make_toy_tokenizer: Make) -> None:
    assert encode_response(make_toy_tokenizer(), "the", "").response_ids == [2]


def test_a_tokenizer_that_adds_no_bos_gets_none(make_toy_tokenizer: Make) -> None:
    assert encode_prompt(make_toy_tokenizer(bos=False), "the film") == [6, 7]


def test_an_empty_prompt_starts_with_bos_or_else_eos(make_toy_tokenizer: Make) -> None:
    assert encode_prompt(make_toy_tokenizer(), "") == [1]
    assert encode_prompt(make_toy_tokenizer(bos=False), "") == [1]
    assert encode_prompt(make_toy_tokenizer(bos=False, bos_token=None), "") == [2]


def test_an_eos_the_tokenizer_appends_is_taken_off_the_prompt(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )

    assert encode_prompt(tokenizer, "the film") == [1, 6, 7]
    assert encode_response(tokenizer, "", "good").response_ids == [9, 2]


def test_an_eos_the_user_wrote_stays_in_the_prompt(make_toy_tokenizer: Make) -> None:
    assert encode_prompt(make_toy_tokenizer(), "the film </s>") == [1, 6, 7, 2]


def test_messages_are_rendered_by_the_template_alone(make_toy_tokenizer: Make) -> None:
    encoded = encode_response(make_toy_tokenizer(), USER, GOOD)

    assert encoded.prompt_ids == [1, 4, 6, 7, 2, 5]
    assert encoded.response_ids == [8, 9, 2]
    assert encode_prompt(make_toy_tokenizer(), USER) == encoded.prompt_ids


def test_the_template_reads_tools_calls_and_the_arguments_of_the_row(make_toy_tokenizer: Make) -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool['function']['name'] }} {% endfor %}{% if mood %}{{ mood }} {% endif %}"
        "{% for m in messages %}{{ m['content'] }} {% for call in m['tool_calls'] %}{{ call['function']['name'] }} "
        "{{ call['function']['arguments']['what'] }} {% endfor %}{% endfor %}"
    )
    options = ChatOptions('[{"type":"function","function":{"name":"was"}}]', '{"mood":"good"}')
    calling = (Message("assistant", "", (ToolCall("was", '{"what":"bad"}'),)),)

    encoded = encode_response(make_toy_tokenizer(template=template), USER, calling, options)

    assert encoded.prompt_ids == [8, 9, 6, 7]
    assert encoded.response_ids == [8, 10]
    assert encode_prompt(make_toy_tokenizer(template=template), USER) == [6, 7]


def test_a_template_whose_prompt_is_no_prefix_is_refused_with_both_texts(make_toy_tokenizer: Make) -> None:
    thinking = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}bad{% endif %}"

    with pytest.raises(InvalidPairError, match=r"continuation.*after 'the film'.*'bad'.*'was good'"):
        encode_response(make_toy_tokenizer(template=thinking), USER, GOOD)


def test_a_template_that_drops_the_response_is_refused(make_toy_tokenizer: Make) -> None:
    template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"

    with pytest.raises(InvalidPairError, match="nothing for the response"):
        encode_response(make_toy_tokenizer(template=template), USER, GOOD)


def test_what_the_template_refuses_is_an_invalid_pair_with_its_words(make_toy_tokenizer: Make) -> None:
    template = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(InvalidPairError, match=r"roles: user\): roles must alternate"):
        encode_prompt(make_toy_tokenizer(template=template), USER)


def test_text_mixed_with_messages_is_refused(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer()

    for prompt, response in (("the film", GOOD), (USER, "was good")):
        with pytest.raises(InvalidPairError, match="both"):
            encode_response(tokenizer, prompt, response)


def test_messages_need_a_chat_template(make_toy_tokenizer: Make) -> None:
    with pytest.raises(InvalidArgumentError, match="no chat template") as caught:
        encode_prompt(make_toy_tokenizer(template=None), USER)
    assert not isinstance(caught.value, InvalidPairError)


def test_a_tokenizer_without_any_end_token_is_refused(make_toy_tokenizer: Make) -> None:
    with pytest.raises(InvalidArgumentError, match="no EOS"):
        encode_response(make_toy_tokenizer(eos_token=None), "the", "film")


def test_padding_falls_back_to_eos(make_toy_tokenizer: Make) -> None:
    assert pad_id(make_toy_tokenizer()) == 0
    assert pad_id(make_toy_tokenizer(pad_token=None)) == 2


def test_digests_follow_what_decides_the_ids_and_nothing_else(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer()
    before = tokenizer_sha256(tokenizer)
    tokenizer(["the film", "the"], padding=True, truncation=True, max_length=2)

    assert tokenizer_sha256(tokenizer) == before
    assert tokenizer_sha256(make_toy_tokenizer(template=None)) == before
    assert tokenizer_sha256(make_toy_tokenizer(bos=False)) != before
    assert tokenizer_sha256(make_toy_tokenizer(bos_token="</s>", eos_token="<s>")) != before
    assert template_sha256(tokenizer) != template_sha256(make_toy_tokenizer(template=None))
    assert template_sha256(make_toy_tokenizer(template=None)).startswith("e3b0c442")


DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y, %-d/%m/%y %H:%M:%S 100%% %j') %}"
    "{% else %}{% set date_string = 'none' %}{% endif %}{% endif %}"
    "{{ date_string }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
)


def test_the_clock_of_templates_stands_still(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer(template=DATED)
    render = partial(render_chat, tokenizer, USER, add_generation_prompt=True)

    assert render(NO_OPTIONS) == "26 Jul 2024, 26/07/24 00:00:00 100% 208 the film"
    assert render(ChatOptions(template_kwargs='{"date_string":"01 Jan 2026"}')) == "01 Jan 2026 the film"
    assert tokenizer.chat_template == DATED


def test_the_time_a_template_tells_is_part_of_its_digest(
    make_toy_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated, timeless = make_toy_tokenizer(template=DATED), make_toy_tokenizer()
    before = template_sha256(dated), template_sha256(timeless)

    monkeypatch.setattr(tokenize, "TEMPLATE_CLOCK", datetime(2025, 1, 1, tzinfo=UTC))

    assert template_sha256(dated) != before[0]
    assert template_sha256(timeless) == before[1]


def test_a_line_end_that_a_dated_template_begins_with_stays(make_toy_tokenizer: Make) -> None:
    dated = "\n{{ strftime_now('%Y') }}{% for m in messages %} {{ m['content'] }}{% endfor %}"

    assert render_chat(make_toy_tokenizer(template=dated), USER, NO_OPTIONS, add_generation_prompt=False) == (
        "\n2024 the film"
    )


@pytest.mark.parametrize("chance", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}"])
def test_a_template_that_draws_at_random_is_refused(make_toy_tokenizer: Make, chance: str) -> None:
    with pytest.raises(InvalidArgumentError, match="draws at random"):
        encode_prompt(make_toy_tokenizer(template=chance + DATED), USER)
