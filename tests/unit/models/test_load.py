import json
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.model_files.configs import label_count, model_kind
from madpo.model_files.transformers_classes import CLASSIFIERS, WITHOUT_CLASSIFIER
from madpo.models.load import (
    check_config,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
)
from madpo.models.save import save_adapter, save_model
from madpo.models.scores import reward_scores
from scripts.transformers_classes import MODULE, module
from tests.model_directories import save_directory

Make = Callable[..., Any]
SMALL = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SMALL, "intermediate_size": 16, "num_key_value_heads": 1}
IDS = torch.tensor([[1, 6, 8, 9, 2], [1, 7, 2, 0, 0]])
OWN_CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def policy(tmp_path: Path, make_toy_tokenizer: Make) -> Path:
    torch.manual_seed(0)
    return save_directory(LlamaForCausalLM(LlamaConfig(**LLAMA)), make_toy_tokenizer(), tmp_path / "policy")


@pytest.fixture
def reward(tmp_path: Path, make_toy_tokenizer: Make) -> Path:
    torch.manual_seed(1)
    return save_directory(
        LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1)), make_toy_tokenizer(), tmp_path / "rm"
    )


def saved_adapter(model: Any, source: Path, directory: Path) -> Path:
    save_adapter(model, directory, source=source)
    return directory


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def digests(directory: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def alone(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Every row by itself, cut at its last token."""
    return torch.cat(
        [reward_scores(model, i[None, : m.sum()], m[None, : m.sum()]) for i, m in zip(ids, mask, strict=True)]
    )


# check_config


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.pt", "modeling_x.py", "nested/weights.pkl", "a.pickle"])
def test_files_that_can_hold_code_are_refused_by_name(policy: Path, name: str) -> None:
    (policy / name).parent.mkdir(exist_ok=True)
    (policy / name).touch()

    with pytest.raises(InvalidArgumentError, match=name):
        check_config(policy)


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}, "model_type": "internlm2"}, "no internlm2 models"),
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}, "architectures": ["XForCausalLM"]}, "LlamaForCausalLM and"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}, "tokenizer_class": "X"}, "auto_map"),
        ("config.json", {"custom_pipelines": {"p": {"impl": "x.Y"}}}, "custom_pipelines"),
        ("config.json", {"quantization_config": {"quant_method": "bnb"}}, "unquantised"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "someone/kernel"),
    ],
)
def test_configurations_that_ask_for_code_or_quantisation_are_refused(
    policy: Path, file: str, change: dict[str, Any], complaint: str
) -> None:
    edit(policy / file, **change)

    with pytest.raises(InvalidArgumentError, match=complaint) as caught:
        load_causal_lm(policy)
    assert file in str(caught.value)


def test_code_that_a_model_names_is_not_run_where_transformers_has_the_class(policy: Path, tmp_path: Path) -> None:
    edit(policy / "config.json", auto_map=OWN_CODE)
    edit(
        policy / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["x.Y", None]},
        tokenizer_class="PreTrainedTokenizerFast",
    )

    model = load_causal_lm(policy)
    save_model(model, tmp_path / "again", source=policy)

    assert type(model) is LlamaForCausalLM
    assert type(load_reward_model(policy, new_head=True)) is LlamaForSequenceClassification
    assert load_tokenizer(policy)("film").input_ids == load_tokenizer(tmp_path / "again")("film").input_ids
    assert digests(tmp_path / "again") == digests(policy)


def test_weights_that_only_its_own_code_would_read_are_refused(policy: Path) -> None:
    weights = load_file(policy / "model.safetensors")
    extra = {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}
    save_file(weights | extra, policy / "model.safetensors", metadata={"format": "pt"})
    load_causal_lm(policy)
    edit(policy / "config.json", auto_map=OWN_CODE)

    for load in (load_causal_lm, partial(load_reward_model, new_head=True)):
        with pytest.raises(FailedPreconditionError, match=r"1 weight \(model\.layers\.1\.self_attn\.q_norm\.weight\)"):
            load(policy)


def test_a_directory_without_configuration_or_with_a_broken_one_is_refused(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no config\.json"):
        check_config(tmp_path / "nowhere")
    (policy / "config.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match=r"config\.json is not JSON"):
        check_config(policy)


def test_adapters_other_than_lora_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')

    with pytest.raises(InvalidArgumentError, match="LORA"):
        check_config(tmp_path)


# Policies


def test_a_policy_comes_back_as_it_was_save_directory(policy: Path, tmp_path: Path) -> None:
    model = load_causal_lm(policy)

    save_model(model, tmp_path / "again", source=policy)

    assert not model.training
    assert digests(tmp_path / "again") == digests(policy)


def test_dtype_is_the_callers(policy: Path) -> None:
    assert next(load_causal_lm(policy).parameters()).dtype == torch.float32
    assert next(load_causal_lm(policy, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_a_reward_model_is_no_policy(reward: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="lm_head"):
        load_causal_lm(reward)


def test_torn_weights_are_named_not_traced(policy: Path) -> None:
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(InvalidArgumentError, match="cannot load the model in policy"):
        load_causal_lm(policy)


def test_weights_that_the_configuration_does_not_fit_are_named_with_both_shapes(policy: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 1}))
    with pytest.raises(InvalidArgumentError, match=r"of other shapes .*mlp\..*weight: stored \[.*\], described \["):
        load_causal_lm(policy)


def test_a_name_of_the_configuration_that_transformers_does_not_know_is_said(policy: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    config.pop("rope_parameters", None)
    (policy / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "made_up", "factor": 2.0}}))
    with pytest.raises(InvalidArgumentError, match="its configuration names 'made_up', which this version of"):
        load_causal_lm(policy)


def test_a_directory_without_tokenizer_is_refused(policy: Path) -> None:
    for path in policy.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(InvalidArgumentError, match="no tokenizer"):
        load_tokenizer(policy)


def test_a_truncation_saved_with_the_tokenizer_is_dropped(policy: Path) -> None:
    state = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(policy / "tokenizer.json", truncation=state)

    assert load_tokenizer(policy).backend_tokenizer.truncation is None


def test_eos_learns_also_where_it_is_the_padding(tmp_path: Path, make_toy_tokenizer: Make) -> None:
    directory = save_directory(
        LlamaForCausalLM(LlamaConfig(**LLAMA, pad_token_id=2)), make_toy_tokenizer(pad_token=None), tmp_path / "m"
    )
    model = load_causal_lm(directory)

    model(input_ids=torch.tensor([[1, 2, 6]])).logits.square().sum().backward()

    assert model.get_input_embeddings().weight.grad[2].abs().sum() > 0


def test_an_adapter_goes_on_its_base_and_comes_back_bit_for_bit(policy: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], task_type=TaskType.CAUSAL_LM)
    adapted = get_peft_model(load_causal_lm(policy), lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    directory = saved_adapter(adapted, policy, tmp_path / "adapter")

    loaded = load_causal_lm(directory, base_directory=policy)
    trainable = load_causal_lm(directory, base_directory=policy, trainable=True)
    save_adapter(loaded, tmp_path / "again", source=policy)

    expected = adapted.eval()(input_ids=IDS).logits
    assert torch.equal(loaded(input_ids=IDS).logits, expected)
    assert not torch.equal(load_causal_lm(policy)(input_ids=IDS).logits, expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {name.split(".")[-3] for name, p in trainable.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    companions = {"chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(digests(directory)) == {"adapter_config.json", "adapter_model.safetensors", *companions}
    assert digests(directory).items() >= {(name, digests(policy)[name]) for name in companions}
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["target_modules"] == ["o_proj", "q_proj", "v_proj"]
    assert str(tmp_path) not in json.dumps(config)
    assert digests(tmp_path / "again")["adapter_model.safetensors"] == digests(directory)["adapter_model.safetensors"]


def test_an_adapter_with_missing_weights_is_refused(policy: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM)
    directory = saved_adapter(get_peft_model(load_causal_lm(policy), lora), policy, tmp_path / "adapter")
    edit(directory / "adapter_config.json", target_modules=["q_proj", "v_proj"])

    with pytest.warns(UserWarning, match="missing"), pytest.raises(FailedPreconditionError, match="v_proj"):
        load_causal_lm(directory, base_directory=policy)


# Reward models


def test_a_new_head_is_drawn_from_the_seed(policy: Path) -> None:
    torch.manual_seed(7)
    first = load_reward_model(policy, new_head=True)
    torch.manual_seed(7)
    second = load_reward_model(policy, new_head=True)
    torch.manual_seed(8)
    third = load_reward_model(policy, new_head=True)

    assert first.score.weight.shape == (1, 16)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, third.score.weight)
    assert torch.equal(first.model.embed_tokens.weight, load_causal_lm(policy).model.embed_tokens.weight)


def test_a_saved_reward_model_needs_no_new_head(policy: Path, tmp_path: Path) -> None:
    model = load_reward_model(policy, new_head=True)
    directory = tmp_path / "rm"
    save_model(model, directory, source=policy)

    loaded = load_reward_model(directory)

    assert torch.equal(reward_scores(loaded, IDS, MASK), reward_scores(model, IDS, MASK))
    assert json.loads((directory / "config.json").read_text())["pad_token_id"] == 0


def test_a_policy_is_no_reward_model(policy: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="LlamaForCausalLM, which has no scoring head"):
        load_reward_model(policy)


def test_weights_without_the_head_are_no_reward_model(policy: Path) -> None:
    edit(policy / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "reward"})

    with pytest.raises(FailedPreconditionError, match=r"score\.weight.*random"):
        load_reward_model(policy)


def test_two_labels_are_refused(tmp_path: Path, make_toy_tokenizer: Make) -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=2))

    with pytest.raises(InvalidArgumentError, match="2 labels"):
        load_reward_model(save_directory(model, make_toy_tokenizer(), tmp_path / "rm"))


def test_a_reward_adapter_brings_its_head(policy: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    adapted = get_peft_model(load_reward_model(policy, new_head=True), lora)
    directory = saved_adapter(adapted, policy, tmp_path / "adapter")

    loaded = load_reward_model(directory, base_directory=policy)

    modules = json.loads((directory / "adapter_config.json").read_text())["modules_to_save"]
    assert modules == ["classifier", "score"]  # peft writes them in hash order, and twice
    assert torch.equal(reward_scores(loaded, IDS, MASK), reward_scores(adapted.eval(), IDS, MASK))
    trainable = load_reward_model(directory, base_directory=policy, trainable=True)
    reward_scores(trainable, IDS, MASK).sum().backward()
    head = trainable.get_base_model().score.weight.grad
    assert head is not None
    assert head.abs().sum() > 0


def test_an_adapter_that_does_not_say_its_task_brings_its_head(policy: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"], task_type=TaskType.SEQ_CLS)
    adapted = get_peft_model(load_reward_model(policy, new_head=True), lora)
    directory = saved_adapter(adapted, policy, tmp_path / "adapter")
    edit(directory / "adapter_config.json", task_type=None, modules_to_save=None)

    loaded = load_reward_model(directory, base_directory=policy)

    assert model_kind(directory) == ("reward", "LORA")
    assert torch.equal(reward_scores(loaded, IDS, MASK), reward_scores(adapted.eval(), IDS, MASK))


@pytest.mark.parametrize(
    "config", [{"num_labels": 1}, {"num_labels": 3}, {}, {"id2label": {"0": "a"}}, {"id2label": {"0": "a", "1": "b"}}]
)
def test_labels_are_counted_as_transformers_counts_them(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))

    assert label_count(config) == AutoConfig.from_pretrained(tmp_path).num_labels


def test_the_table_of_classes_is_that_of_transformers() -> None:
    assert MODULE.read_text() == module(), "run scripts/transformers_classes.py"
    assert CLASSIFIERS["llama"] == "LlamaForSequenceClassification"
    assert "granite" in WITHOUT_CLASSIFIER
    assert "llama" not in WITHOUT_CLASSIFIER


def test_a_family_without_a_classifier_is_named_without_the_list_of_all_others(
    tmp_path: Path, make_toy_tokenizer: Make
) -> None:
    directory = save_directory(GraniteForCausalLM(GraniteConfig(**LLAMA)), make_toy_tokenizer(), tmp_path / "granite")

    with pytest.raises(
        InvalidArgumentError, match=r"granite: transformers has no SequenceClassification of granite models$"
    ):
        load_reward_model(directory, new_head=True)


def test_a_reward_adapter_without_head_is_refused(policy: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    adapted = get_peft_model(load_reward_model(policy, new_head=True), lora)
    directory = saved_adapter(adapted, policy, tmp_path / "adapter")

    with pytest.raises(FailedPreconditionError, match=r"adapter holds no scoring head \(score\.weight\)"):
        load_reward_model(directory, base_directory=policy)


# Scores


def models() -> list[PreTrainedModel]:
    options = {"num_labels": 1, "pad_token_id": 0}
    gemma = Gemma3TextConfig(**LLAMA, **options, head_dim=8, layer_types=["sliding_attention", "full_attention"])
    return [
        LlamaForSequenceClassification(LlamaConfig(**LLAMA, **options)),
        Qwen2ForSequenceClassification(Qwen2Config(**LLAMA, **options)),
        GPT2ForSequenceClassification(
            GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=16, **options)
        ),
        Gemma3TextForSequenceClassification(gemma),
        BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=16, **options)),
    ]


@pytest.mark.parametrize("index", range(5), ids=["llama", "qwen2", "gpt2", "gemma3", "bert"])
def test_scores_agree_with_transformers_and_do_not_depend_on_the_batch(index: int) -> None:
    torch.manual_seed(3)
    model = models()[index].eval()

    scores = reward_scores(model, IDS, MASK)

    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model(input_ids=IDS, attention_mask=MASK).logits[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores, alone(model, IDS, MASK), rtol=1e-5, atol=1e-6)


def test_the_closing_eos_is_read_where_transformers_takes_it_for_padding() -> None:
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1, pad_token_id=2)).eval()
    ids = IDS.masked_fill(MASK == 0, 2)

    scores = reward_scores(model, ids, MASK)

    torch.testing.assert_close(scores, alone(model, ids, MASK), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores, reward_scores(model, IDS, MASK), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(scores, model(input_ids=ids, attention_mask=MASK).logits[:, 0], atol=1e-4)


def test_the_head_stays_float32_under_autocast(reward: Path) -> None:
    model = load_reward_model(reward)
    model.score.weight.data.fill_(1 + 2**-12)  # not representable in bfloat16

    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = reward_scores(model, IDS, MASK)
        hidden = model.model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        pooled = hidden[torch.arange(2), MASK.sum(-1) - 1]

    torch.testing.assert_close(scores, (pooled.float() * (1 + 2**-12)).sum(-1))
