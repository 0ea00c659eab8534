"""Policies of every family, trained with live margins, whole and as adapters, and evaluated."""

import pytest

from tests.families import comparison
from tests.families.catalogue import CAUSAL
from tests.families.comparison import Plain, near
from tests.families.family import Family
from tests.families.flows import Flow, Flows, scorer_of

pytestmark = pytest.mark.parametrize("family", CAUSAL, ids=str)
each_way = pytest.mark.parametrize("flow", ["policy", "policy_lora"])


@each_way
@pytest.mark.cell
def test_it_learns_from_live_margins_in_its_layout(flows: Flows, family: Family, flow: Flow):
    summary = flows.job(family, flow).result.summary

    assert comparison.ledger_margins(flows, family, flow) == near(comparison.service_margins(flows, family, flow))
    assert summary["eval"]["log_ratio_diff/mean"] > summary["eval_before"]["log_ratio_diff/mean"] == 0
    assert summary["execution"]["layout"] == family.layout


@each_way
@pytest.mark.cell("files")
def test_tokenizer_template_and_dtype_are_those_of_the_base(flows: Flows, family: Family, flow: Flow):
    allowed = {family.dtype, "float32"} if flow == "policy_lora" else {family.dtype}

    assert comparison.changed_files(flows, family, flow) == family.may_change
    assert comparison.dtypes(flows.download(family, flow)) <= allowed


@each_way
@pytest.mark.cell("transformers")
def test_plain_transformers_computes_what_we_do(flows: Flows, family: Family, flow: Flow, plain: Plain):
    values = comparison.plain_values(flows, family, flow, plain)

    assert values.alone == near(comparison.our_values(flows, family, flow))
    assert values.padded == near(values.alone)


@pytest.mark.cell("merged")
def test_merged_it_is_the_same(flows: Flows, family: Family, plain: Plain):
    apart = comparison.plain_values(flows, family, "policy_lora", plain)
    merged = comparison.plain_values(flows, family, "policy_lora", plain, merged="exact")

    assert merged.alone == near(apart.alone)
    assert merged.padded == near(merged.alone)
    assert comparison.changed_files(flows, family, "policy_lora", merged="exact") == family.may_change
    assert comparison.dtypes(flows.download(family, "policy_lora", merged="exact")) <= {family.dtype, "float32"}


@pytest.mark.cell("merged")
def test_merged_in_the_dtype_of_its_base_it_is_rounded_once(flows: Flows, family: Family):
    directory = flows.download(family, "policy_lora", merged="base")

    assert comparison.rounded_otherwise(flows, family, "policy_lora") == []
    assert comparison.dtypes(directory) == {family.dtype}
    assert comparison.changed_files(flows, family, "policy_lora", merged="base") == family.may_change
    assert (directory / "config.json").read_bytes() == (flows.base_directory(family) / "config.json").read_bytes()


@pytest.mark.cell("transformers")
def test_peft_finds_the_base_of_an_adapter_by_its_name(flows: Flows, family: Family, plain: Plain):
    adapter, asked = flows.download(family, "policy_lora"), comparison.attention_asked_for(family)
    beside = flows.base_by_its_id(family)

    found = plain("measure_by_name", str(adapter), comparison.rows(flows, family), beside=str(beside), **asked)

    assert [value for row in found for value in row] == near(comparison.our_values(flows, family, "policy_lora"))


@pytest.mark.cell("evaluation")
def test_it_is_evaluated_by_what_plain_transformers_answers(flows: Flows, family: Family, plain: Plain):
    answers = comparison.plain_answers(flows, family, plain)
    drawn = [each for each in comparison.generations(flows, family) if each["temperature"] == 0]

    greedy = [{name: each[name] for name in answers[0]} for each in drawn]
    assert (greedy[::2], greedy[1::2]) == (answers, answers)  # two samples of each prompt


@pytest.mark.cell("evaluation")
def test_it_is_scored_and_compared_with_its_base(flows: Flows, family: Family, plain: Plain):
    scorer = flows.job(scorer_of(family), "reward_lora").result.model_id
    drawn = comparison.generations(flows, family)

    scores = flows.site.score(scorer, comparison.drawn_texts(flows, family))
    assert [each["metrics"]["reward"] for each in drawn] == near(scores)
    summary = flows.evaluation(family).result.summary
    assert summary["implicit_reward_accuracy"] == comparison.plain_accuracy(flows, family, plain)
