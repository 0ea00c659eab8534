"""Names of layers for adapters, checked against what a model has."""

import pytest

from madpo.adapter_targets import layers_of_tensors, require_layers
from madpo.errors import InvalidArgumentError

TENSORS = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.qkv_proj.weight": (12, 4),
    "model.layers.0.self_attn.qkv_proj.bias": (12,),
    "model.layers.0.mlp.down_proj.weight": (4, 8),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.layers.0.conv1d.weight": (4, 1, 3),
    "model.layers.0.mlp.experts.scale": (2, 2),
    "model.layers.1.mlp.experts.0.up_proj.weight": (8, 4),
    "model.layers.2.mixer.A_log": (4, 2),
    "model.layers.2.mixer.D": (4,),
    "model.layers.2.mixer.in_proj.weight": (8, 4),
    "model.layers.2.mixer.out_proj.weight": (4, 8),
    "model.layers.3.linear_attn.A_log": (4,),
    "model.layers.3.linear_attn.out_proj.weight": (4, 8),
}


def test_layers_that_may_get_an_adapter_are_known_from_names_and_shapes_of_tensors():
    assert layers_of_tensors(TENSORS) == {
        "model.embed_tokens",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.2.mixer.in_proj",
        "model.layers.3.linear_attn.out_proj",
    }


def test_what_a_model_of_more_than_text_has_beside_its_language_model_gets_none():
    body = {
        "language_model.model.embed_tokens.weight": (8, 4),
        "language_model.model.layers.0.self_attn.q_proj.weight": (4, 4),
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (4, 4),
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (8, 4),
    }
    renamed = {f"model.{name}": shape for name, shape in body.items()} | {"lm_head.weight": (8, 4)}

    assert layers_of_tensors(body) == {
        "language_model.model.embed_tokens",
        "language_model.model.layers.0.self_attn.q_proj",
    }
    assert layers_of_tensors(renamed) == {
        "lm_head",
        "model.language_model.model.embed_tokens",
        "model.language_model.model.layers.0.self_attn.q_proj",
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
        "the model has no layer qkv_prj, own_proj that an adapter can go on; did you mean qkv_proj? it has down_proj, "
        "embed_tokens, in_proj, out_proj, qkv_proj (all-linear takes every linear one but the head)"
    )
