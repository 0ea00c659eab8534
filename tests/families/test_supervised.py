"""Supervised training of every family, until it knows its answers."""

import json

import pytest

from tests.families import comparison
from tests.families.catalogue import CAUSAL
from tests.families.comparison import Plain, near
from tests.families.family import Family
from tests.families.flows import GOOD, Flows

pytestmark = pytest.mark.parametrize("family", CAUSAL, ids=str)


@pytest.mark.cell("SFT")
def test_it_learns_its_rows_in_its_layout(flows: Flows, family: Family):
    summary = flows.job(family, "supervised").result.summary

    assert summary["final"]["loss"] < 0.5
    assert summary["execution"]["layout"] == family.layout
    assert comparison.attention(flows, family, "supervised") == family.attention


@pytest.mark.cell("files")
def test_tokenizer_template_and_dtype_are_those_of_the_base(flows: Flows, family: Family):
    assert comparison.changed_files(flows, family, "supervised") == family.may_change
    assert comparison.dtypes(flows.download(family, "supervised")) == {family.dtype}


@pytest.mark.cell("transformers")
def test_plain_transformers_reads_text_as_we_do(flows: Flows, family: Family, plain: Plain):
    directory, texts = str(flows.download(family, "supervised")), comparison.texts(flows, family)

    for special_tokens in (True, False):
        found = plain("tokenize", directory, texts, special_tokens=special_tokens)

        assert found == comparison.our_ids(flows, family, special_tokens=special_tokens)


@pytest.mark.cell("transformers")
def test_plain_transformers_computes_what_we_do(flows: Flows, family: Family, plain: Plain):
    values = comparison.plain_values(flows, family, "supervised", plain)

    assert values.alone == near(comparison.our_values(flows, family, "supervised"))
    assert values.padded == near(values.alone)


@pytest.mark.cell("transformers")
def test_it_answers_and_stops_at_the_end_of_its_turn(flows: Flows, family: Family, plain: Plain):
    encoded = flows.encode(family, GOOD)

    answers = plain(
        "generate",
        str(flows.download(family, "supervised")),
        [each.prompt_ids for each in encoded],
        **comparison.attention_asked_for(family),
    )

    # A template may put more behind the end of a turn: a line end, or EOS as well.
    ends = comparison.end_tokens(flows.download(family, "supervised"))
    assert [answer[-1] in ends for answer in answers] == [True] * len(encoded)
    assert answers == [each.response_ids[: len(answer)] for each, answer in zip(encoded, answers, strict=True)]


def test_an_end_of_turn_that_was_learnt_ends_generation_and_is_reported(flows: Flows, family: Family):
    if family.learns_end_of_turn is None:
        pytest.skip("the base knows its end of turn")
    before, after = (
        json.loads((directory / "generation_config.json").read_text())
        for directory in (flows.base_directory(family), flows.download(family, "supervised"))
    )

    assert after == before | {"eos_token_id": [before["eos_token_id"], family.learns_end_of_turn]}
    checkpoint = json.loads((flows.checkpoint(family, "supervised") / "generation_config.json").read_text())
    assert checkpoint == after
    reported = flows.job(family, "supervised").result.summary["output"]["added_end_tokens"]
    assert list(reported) == [str(family.learns_end_of_turn)]
