"""Which tokens of a response of several turns count, under templates of many kinds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madpo.data.assistant_turns import assistant_spans
from madpo.data.encode import EncodedRow, encode_rows
from madpo.data.loss_mask import counted_places, counted_tokens, cut_mask, mask_of, spans
from madpo.data.overlong import fit
from madpo.data.tokenize import render_chat
from madpo.errors import InvalidPairError
from madpo.types import NO_OPTIONS, ChatOptions, Completion, Message, PreferencePair, ToolCall

pytestmark = pytest.mark.data

Make = Callable[..., Any]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
EOS_BEHIND_LAST = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = """{% set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

USER, AGAIN = Message("user", "the film"), Message("user", "and <b> you?")
GOOD, BAD = Message("assistant", " was good "), Message("assistant", "good")
CHAT = (USER, GOOD, AGAIN, BAD)


def turns(tokenizer: Any, messages: Sequence[Message], first: int = 1, options: ChatOptions = NO_OPTIONS) -> list[str]:
    render = partial(render_chat, tokenizer, options=options)
    whole = render(messages, add_generation_prompt=False)
    return [whole[start:end] for start, end in assistant_spans(render, messages, first, whole)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [" was good <|im_end|>\n", "good<|im_end|>\n"]),
        (LLAMA3, ["was good<|eot_id|>", "good<|eot_id|>"]),
        (MISTRAL, ["  was good </s>", " good</s>"]),
        # What an intermediate and a last turn have in common ends within the next mark, which is one token.
        (PHI, [" was good <|end|>\n<", "good<|end|>\n</s>"]),
        (EOS_BEHIND_LAST, [" was good ", "good</s>\n"]),
        (THINKING, [" was good <|im_end|>\n", "<think>\n\n</think>\n\ngood<|im_end|>\n"]),
    ],
    ids=["chatml", "llama3", "mistral", "phi", "eos behind the last turn", "thinking"],
)
def test_a_turn_is_what_is_said_with_its_end(make_toy_tokenizer: Make, template: str, expected: list[str]) -> None:
    found = turns(make_toy_tokenizer(template=template), CHAT)

    assert [turn.removesuffix("|") for turn in found] == expected


def test_thinking_that_the_template_leaves_out_of_earlier_turns_is_no_obstacle(make_toy_tokenizer: Make) -> None:
    thought = Message("assistant", "good", reasoning_content="the film")
    tokenizer = make_toy_tokenizer(template=THINKING)

    whole = turns(tokenizer, (USER, thought, AGAIN, thought))
    shut = turns(tokenizer, (USER, GOOD, AGAIN, BAD), options=ChatOptions(template_kwargs='{"enable_thinking":false}'))

    assert whole == ["good<|im_end|>\n", "<think>\nthe film\n</think>\n\ngood<|im_end|>\n"]
    assert shut == [" was good <|im_end|>\n", "good<|im_end|>\n"]


def test_calls_count_and_what_a_tool_answers_does_not(make_toy_tokenizer: Make) -> None:
    call = Message("assistant", "", (ToolCall("look"),))

    found = turns(make_toy_tokenizer(template=CHATML), (USER, call, Message("tool", "12"), BAD))

    assert found == ["<tool_call>look</tool_call><|im_end|>\n", "good<|im_end|>\n"]


def test_turns_of_one_side_in_a_row_count_without_the_marks_between(make_toy_tokenizer: Make) -> None:
    assert turns(make_toy_tokenizer(template=CHATML), (USER, BAD, BAD)) == ["good<|im_end|>\n", "good<|im_end|>\n"]


def test_a_turn_that_the_template_hides_is_refused_with_its_place(make_toy_tokenizer: Make) -> None:
    hiding = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }};{% endif %}{% endfor %}"

    with pytest.raises(InvalidPairError, match="turn 2 of the conversation"):
        turns(make_toy_tokenizer(template=hiding), CHAT)


ANSWERS = (Message("assistant", "was good"), Message("user", "the film ."), Message("assistant", "was bad"))


def test_the_tokens_of_a_row_that_count_are_the_assistants(make_toy_tokenizer: Make) -> None:
    tokenizer = make_toy_tokenizer()
    row = PreferencePair((USER,), ANSWERS, ANSWERS[:1], row=1, gold=ANSWERS)

    ((encoded, _),) = encode_rows(tokenizer, [row])

    assert isinstance(encoded, EncodedRow)
    chosen = encoded.sequence(0)
    assert [tokenizer.decode([chosen.response_ids[place]]) for place in counted_places(chosen.mask, 99)] == [
        "was",
        "good",
        "</s>",
        "was",
        "bad",
        "</s>",
    ]
    assert chosen.counted == 6 < len(chosen.response_ids)
    assert encoded.masks == (chosen.mask, (), chosen.mask)
    assert encoded.sequence(1).counted == len(encoded.responses[1])
    assert encoded.only((1, 2)).masks == ((), chosen.mask)


def test_one_turn_counts_whole_and_has_no_mask(make_toy_tokenizer: Make) -> None:
    rows = [Completion((USER,), ANSWERS[:1], row=1), Completion("the", "film", row=2)]

    for encoded, _ in encode_rows(make_toy_tokenizer(), rows):
        assert isinstance(encoded, EncodedRow)
        assert encoded.masks == ()
        assert encoded.sequence(0).counted == len(encoded.responses[0])


def test_a_response_cut_to_nothing_that_counts_is_dropped(make_toy_tokenizer: Make) -> None:
    row = EncodedRow(1, [1, 6], ([7, 8, 9, 2],), ((0, 2, 2),))

    assert fit(row, 4, "truncate_response", bos_id=1) is None
    assert fit(row, 5, "truncate_response", bos_id=1) == EncodedRow(1, [1, 6], ([7, 8, 9],), ((0, 2, 1),))
    whole = EncodedRow(1, [1, 6], ([7, 8, 9, 2],), ((2, 2),))
    assert fit(whole, 4, "truncate_response", bos_id=1) == EncodedRow(1, [1, 6], ([7, 8],))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 40))
def test_a_mask_says_what_its_flags_say_however_it_is_cut(flags: list[bool], length: int) -> None:
    mask = mask_of(flags)

    assert counted_places(mask, len(flags)) == [place for place, counts in enumerate(flags) if counts]
    assert counted_tokens(mask, len(flags)) == sum(flags)
    assert sum(end - start for start, end, _ in spans(mask, len(flags))) == len(flags)
    kept = flags[:length]
    assert cut_mask(mask, length) == mask_of(kept) or all(kept)
    assert counted_places(cut_mask(mask, length), len(kept)) == [place for place, counts in enumerate(kept) if counts]
