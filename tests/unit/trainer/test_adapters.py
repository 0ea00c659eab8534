"""Which layers of which model get an adapter."""

import copy

import pytest
import torch
import transformers
from peft import TaskType
from pydantic import ValidationError

from madpo import expressions
from madpo.errors import InvalidArgumentError
from madpo.jobs.training import LoraParameters
from madpo_trainer.adapters import target_layers, with_adapters
from madpo_trainer.trained_weights import describe_trained

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MIXTURE = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "head_dim": 8}
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
GEMMA = sorted([*ATTENTION, "down_proj", "gate_proj", "up_proj"])
MODELS = {
    "llama": (transformers.LlamaConfig(**SIZE, **IDS), [*ATTENTION, "down_proj", "gate_proj", "up_proj"]),
    "phi 3": (transformers.Phi3Config(**SIZE, **IDS), ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
    "gpt 2": (
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, **IDS),
        ["c_attn", "c_fc", "c_proj"],
    ),
    "gpt neox": (
        transformers.GPTNeoXConfig(**SIZE, **IDS),
        ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    ),
    # Their experts are stacked in one tensor, and their routers are left alone.
    "qwen 3 moe": (
        transformers.Qwen3MoeConfig(num_experts=4, moe_intermediate_size=8, **SIZE, **IDS, **MIXTURE),
        ATTENTION,
    ),
    "mixtral": (transformers.MixtralConfig(num_local_experts=4, **SIZE, **IDS, **MIXTURE), ATTENTION),
    "gpt oss": (transformers.GptOssConfig(num_local_experts=4, **SIZE, **IDS, **MIXTURE), ATTENTION),
    # Dense layers and shared experts have the names of the experts, which are what peft would adapt in some models.
    "glm 4 moe": (
        transformers.Glm4MoeConfig(
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=8,
            first_k_dense_replace=1,
            **SIZE,
            **IDS,
            **MIXTURE,
        ),
        ATTENTION,
    ),
    "llama 4": (
        transformers.Llama4TextConfig(num_local_experts=2, intermediate_size_mlp=8, **SIZE, **IDS, **MIXTURE),
        [*ATTENTION, "down_proj", "gate_proj", "up_proj"],
    ),
    # Kernels read the weights of all but the first layer of a mixer.
    "mamba": (transformers.MambaConfig(**SIZE, **IDS), ["in_proj"]),
    "jamba": (
        transformers.JambaConfig(
            num_experts=2, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1, **SIZE, **IDS
        ),
        [*ATTENTION, "down_proj", "gate_proj", "in_proj", "up_proj"],
    ),
}


def causal_lm(name):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_all_linear_is_every_linear_layer_but_the_head(name):
    lora = LoraParameters(rank=2)

    model = with_adapters(causal_lm(name), lora, TaskType.CAUSAL_LM)

    adapted = describe_trained(model)["adapted_layers"]
    assert sorted(adapted) == sorted(MODELS[name][1])
    assert set(adapted.values()) <= {1, 2, 4}
    assert not [key for key in model.state_dict() if ".experts." in key and "lora_" in key]
    assert {part for key, p in model.named_parameters() if p.requires_grad for part in key.split(".")} >= {"lora_A"}
    assert all("lora_" in key for key, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["llama", "phi 3", "gpt 2", "gpt neox", "qwen 3 moe"])
def test_a_reward_model_is_adapted_likewise_and_its_head_trained_whole(name):
    torch.manual_seed(0)
    config = copy.deepcopy(MODELS[name][0])
    config.num_labels = 1
    body = transformers.AutoModelForSequenceClassification.from_config(config)

    model = with_adapters(body, LoraParameters(rank=2), TaskType.SEQ_CLS)

    assert sorted(describe_trained(model)["adapted_layers"]) == sorted(MODELS[name][1])
    whole = [key for key, p in model.named_parameters() if p.requires_grad and "lora_" not in key]
    assert [key.rpartition("base_model.model.")[2] for key in whole] == ["score.modules_to_save.default.weight"]


@pytest.mark.parametrize(
    ("config", "adapted", "whole"),
    [
        (
            transformers.DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50, num_labels=1),
            ["k_lin", "lin1", "lin2", "out_lin", "q_lin", "v_lin"],
            {"classifier", "pre_classifier"},
        ),
        (transformers.RobertaConfig(**SIZE, num_labels=1), ["dense", "key", "query", "value"], {"classifier"}),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_all_layers_of_an_encoders_head_are_trained_whole(config, adapted, whole):
    model = with_adapters(
        transformers.AutoModelForSequenceClassification.from_config(config), LoraParameters(rank=2), TaskType.SEQ_CLS
    )

    assert list(describe_trained(model)["adapted_layers"]) == adapted
    trained = {key.removeprefix("base_model.model.") for key, p in model.named_parameters() if p.requires_grad}
    assert {key.partition(".")[0] for key in trained if "lora_" not in key} == whole
    assert not [key for key in trained if key.startswith(tuple(whole)) and "lora_" in key]


def test_what_text_passes_by_gets_no_adapter():
    towers = ("vision_tower", "multi_modal_projector")
    model = text_and_images()
    every = [name for name, _ in model.named_parameters()]
    assert any(f"{tower}." in name for tower in towers for name in every)

    adapted = with_adapters(model, LoraParameters(rank=2), TaskType.CAUSAL_LM)

    record = describe_trained(adapted)
    assert record["adapted_layers"] == dict.fromkeys(GEMMA, 2)
    trained = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    assert all(".language_model." in key and "lora_" in key for key in trained)
    text = [p for key, p in adapted.named_parameters() if not any(f".{tower}." in key for tower in towers)]
    assert record["of_parameters"] == sum(p.numel() for p in text)


def test_a_name_means_the_layers_that_text_goes_through():
    assert target_layers(text_and_images(), LoraParameters(target_modules=("q_proj",))) == [
        f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(2)
    ]
    with pytest.raises(InvalidArgumentError, match="no layer fc1 that an adapter can go on"):
        target_layers(text_and_images(), LoraParameters(target_modules=("fc1",)))


def text_and_images():
    text = SIZE | {"num_key_value_heads": 1, "head_dim": 8}
    vision = {**SIZE, "image_size": 16, "patch_size": 4}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.AutoModelForCausalLM.from_config(config)


def test_what_peft_refuses_is_said():
    lora = LoraParameters(rank=2, target_modules=("pre_classifier",))
    config = transformers.DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50, num_labels=1)
    with pytest.raises(InvalidArgumentError, match=r"training\.lora: peft cannot adapt these layers: modules_to_save"):
        with_adapters(transformers.AutoModelForSequenceClassification.from_config(config), lora, TaskType.SEQ_CLS)


def test_absent_names_are_refused_with_those_there_are():
    with pytest.raises(
        InvalidArgumentError, match=r"target_modules: the model has no layer q_proj that .*; .*mean qkv_proj"
    ):
        target_layers(causal_lm("phi 3"), LoraParameters(target_modules=("q_proj", "o_proj")))
    with pytest.raises(InvalidArgumentError, match=r"exclude_modules: the model has no layer gate"):
        target_layers(causal_lm("phi 3"), LoraParameters(exclude_modules=("gate",)))


def test_names_that_experts_have_as_well_are_refused():
    for name in ("down_proj", "layers.0.mlp.gate_proj", "gate_proj"):
        with pytest.raises(InvalidArgumentError, match=r"target_modules: \w+_proj: the model's experts are called so"):
            target_layers(causal_lm("glm 4 moe"), LoraParameters(target_modules=("q_proj", name)))


def test_layers_whose_weights_kernels_read_are_no_targets():
    with pytest.raises(InvalidArgumentError, match="no layer out_proj that an adapter can go on"):
        target_layers(causal_lm("jamba"), LoraParameters(target_modules=("out_proj",)))


def test_named_layers_alone_are_adapted_and_excluded_ones_are_not():
    lora = LoraParameters(target_modules=("q_proj", "layers.1.mlp.down_proj", "embed_tokens"))
    assert target_layers(causal_lm("llama"), lora) == [
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    without = LoraParameters(exclude_modules=("down_proj", "o_proj"))
    assert target_layers(causal_lm("phi 3"), without) == ["gate_up_proj", "qkv_proj"]
    with pytest.raises(InvalidArgumentError, match="exclude_modules takes all"):
        target_layers(causal_lm("phi 3"), LoraParameters(target_modules=("o_proj",), exclude_modules=("o_proj",)))


def test_patterns_are_of_whole_names():
    chosen = target_layers(causal_lm("llama"), LoraParameters(target_modules=r".*layers\.1\..*(q|up)_proj"))
    assert chosen == ["model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    both = LoraParameters(target_modules=(r".*(q|v)_proj", "o_proj"), exclude_modules=(r".*\.0\..*", "v_proj"))
    assert target_layers(causal_lm("llama"), both) == [
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    with pytest.raises(InvalidArgumentError, match=r"no layer \(q\|v\)_proj that"):
        target_layers(causal_lm("llama"), LoraParameters(target_modules="(q|v)_proj"))
    with pytest.raises(ValidationError, match="is no regular expression: missing"):
        LoraParameters(target_modules="(q_proj")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_pattern_without_end_is_given_up_and_named(field: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expressions, "_WITHIN_S", 1.0)
    lora = LoraParameters.model_validate({field: ("(([a-z_.0-9]+)+)+!",)})

    with pytest.raises(InvalidArgumentError, match="came to nothing in 1 s") as caught:
        target_layers(causal_lm("llama"), lora)

    assert caught.value.violations[0].field == f"training.lora.{field}"


def test_all_linear_may_be_written_as_text_and_stands_alone():
    assert LoraParameters(target_modules="all-linear") == LoraParameters()
    for wrong in ((), ("all-linear", "q_proj")):
        with pytest.raises(ValidationError):
            LoraParameters(target_modules=wrong)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank():
    model = with_adapters(causal_lm("llama"), LoraParameters(rank=4, alpha=8, use_rslora=True), TaskType.CAUSAL_LM)

    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling == {"default": 4.0}
