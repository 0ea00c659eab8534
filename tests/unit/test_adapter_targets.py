"""Names of layers for adapters, checked against what a model has."""

import pytest

from madpo.adapter_targets import layers_of_tensors, require_layers
from madpo.errors import InvalidArgumentError

TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.layers.0.self_attn.qkv_proj.bias",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.experts.scale",
]


def test_layers_are_known_from_the_names_of_tensors():
    assert layers_of_tensors(TENSORS) == {
        "model.embed_tokens",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.0.input_layernorm",
    }


@pytest.mark.parametrize(
    "names", [["all-linear"], ["qkv_proj", "down_proj"], ["mlp.down_proj"], ["model.layers.0.mlp.down_proj"]]
)
def test_names_that_end_a_layers_name_are_taken(names):
    require_layers(names, layers_of_tensors(TENSORS), field="training.lora.target_modules")


def test_absent_names_are_refused_with_those_there_are():
    with pytest.raises(InvalidArgumentError) as caught:
        require_layers(
            ["qkv_proj", "qkv_prj", "own_proj"], layers_of_tensors(TENSORS), field="training.lora.target_modules"
        )

    (violation,) = caught.value.violations
    assert violation.field == "training.lora.target_modules"
    assert violation.description == (
        "the model has no layer qkv_prj, own_proj; did you mean qkv_proj? it has down_proj, embed_tokens, "
        "input_layernorm, qkv_proj (all-linear takes every linear one but the head)"
    )
