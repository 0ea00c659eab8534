"""Reward models of every family, whole and as adapters."""

import pytest

from tests.families import comparison
from tests.families.catalogue import FAMILIES
from tests.families.comparison import Plain, near
from tests.families.family import Family
from tests.families.flows import Flow, Flows
from tests.families.older import OlderTransformers

pytestmark = pytest.mark.parametrize("family", [each for each in FAMILIES if each.has_classifier], ids=str)
each_way = pytest.mark.parametrize("flow", ["reward", "reward_lora"])


@each_way
@pytest.mark.cell
def test_it_learns_in_its_layout(flows: Flows, family: Family, flow: Flow):
    summary = flows.job(family, flow).result.summary

    assert summary["eval"]["loss"] < summary["eval_before"]["loss"]
    assert summary["execution"]["layout"] == family.layout
    assert comparison.attention(flows, family, flow) == family.attention


@each_way
@pytest.mark.cell("files")
def test_tokenizer_template_and_dtype_are_those_of_the_base(flows: Flows, family: Family, flow: Flow):
    allowed = {family.dtype, "float32"} if flow == "reward_lora" else {family.dtype}

    assert comparison.changed_files(flows, family, flow) == set()
    assert comparison.dtypes(flows.download(family, flow)) <= allowed


@each_way
@pytest.mark.cell("transformers")
def test_plain_transformers_scores_as_the_reward_service_does(flows: Flows, family: Family, flow: Flow, plain: Plain):
    if isinstance(plain, OlderTransformers) and not family.has_older_classifier:
        with pytest.raises(AssertionError, match="Unrecognized configuration class"):
            comparison.plain_values(flows, family, flow, plain)
        return
    values = comparison.plain_values(flows, family, flow, plain)

    assert values.alone == near(comparison.our_values(flows, family, flow))
    assert values.padded == near(values.alone)


@pytest.mark.cell("merged")
def test_merged_it_is_the_same(flows: Flows, family: Family, plain: Plain):
    if isinstance(plain, OlderTransformers) and not family.has_older_classifier:
        pytest.skip("transformers 4.57 has no classifier of this family")
    apart = comparison.plain_values(flows, family, "reward_lora", plain)
    merged = comparison.plain_values(flows, family, "reward_lora", plain, merged="exact")

    assert merged.alone == near(apart.alone)
    assert merged.padded == near(merged.alone)
    assert comparison.changed_files(flows, family, "reward_lora", merged="exact") == set()
    assert comparison.dtypes(flows.download(family, "reward_lora", merged="exact")) <= {family.dtype, "float32"}


@pytest.mark.cell("merged")
def test_merged_in_the_dtype_of_its_base_it_is_rounded_once(flows: Flows, family: Family):
    assert comparison.rounded_otherwise(flows, family, "reward_lora") == []
    assert comparison.dtypes(flows.download(family, "reward_lora", merged="base")) == {family.dtype}
