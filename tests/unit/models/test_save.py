"""What is written is what was trained, and the rest is what was there."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from madpo.model_files.companions import add_end_tokens
from madpo.models import save
from madpo.models.dtypes import WeightDtypes, round_weights, stored_dtypes
from madpo.models.load import load_causal_lm, load_reward_model
from madpo.models.save import save_adapter, save_model, weight_parts
from madpo.models.scores import padding_of, reward_scores
from tests.model_directories import save_directory

Make = Callable[..., Any]
SIZES = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_key_value_heads": 1,
}
TEXTS = [[1, 6, 8, 9, 2], [1, 7, 2]]
COMPANIONS = {
    "tokenizer.model": b"\x00sentencepiece",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "special_tokens_map.json": b'{"eos_token": "</s>"}',
    "added_tokens.json": b"{ }",
    "preprocessor_config.json": b"{}",
    "chat_templates/tool_use.jinja": b"{{ messages }}",
}


@pytest.fixture
def base(tmp_path: Path, make_toy_tokenizer: Make) -> Path:
    return make_base(tmp_path / "base", make_toy_tokenizer())


def make_base(directory: Path, tokenizer: Any, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, initializer_range=0.5, **{"bos_token_id": 1, "eos_token_id": 2, **options})
    return save_directory(LlamaForCausalLM(config).to(dtype), tokenizer, directory)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=3))


def plain_scores(directory: Path) -> tuple[Tensor, Tensor]:
    """Of TEXTS in plain transformers: one by one, and as a right-padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    alone = [
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long()).logits for ids in TEXTS
    ]
    ids = torch.full((2, 5), -1)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)] = torch.tensor(text)
    mask = (ids >= 0).long()
    if model.config.pad_token_id is None:
        return torch.cat(alone)[:, 0], torch.cat(alone)[:, 0]
    batch = model(input_ids=ids.where(mask.bool(), model.config.pad_token_id), attention_mask=mask).logits
    return torch.cat(alone)[:, 0], batch[:, 0]


@pytest.mark.parametrize("pad_token", [None, "</s>", "<pad>"])
@pytest.mark.parametrize("configured", [None, 2, 0])
def test_plain_transformers_gives_a_saved_reward_model_our_scores(
    tmp_path: Path, make_toy_tokenizer: Make, pad_token: str | None, configured: int | None
) -> None:
    base = make_base(tmp_path / "base", make_toy_tokenizer(pad_token=pad_token), pad_token_id=configured)
    model = load_reward_model(base, new_head=True)

    save_model(model, tmp_path / "rm", source=base)

    ours = torch.cat([reward_scores(model, torch.tensor([ids]), torch.ones(1, len(ids)).long()) for ids in TEXTS])
    alone, batch = plain_scores(tmp_path / "rm")
    torch.testing.assert_close(alone, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch, ours, rtol=0, atol=1e-5)
    assert padding_of(model) != 2


@pytest.mark.parametrize("tied", [False, True])
def test_large_weights_are_several_files_which_are_read_as_one(
    base: Path, tmp_path: Path, make_toy_tokenizer: Make, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    base = make_base(tmp_path / "tied", make_toy_tokenizer(), tie_word_embeddings=True) if tied else base
    model = load_causal_lm(base)
    save_model(model, tmp_path / "one", source=base)
    monkeypatch.setattr(save, "PART_BYTES", 2_000)

    save_model(model, tmp_path / "several", source=base, dtypes=WeightDtypes(torch.bfloat16))
    save_model(model, tmp_path / "exact", source=base)

    assert [path.name for path in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    files = {each: sorted((tmp_path / each).glob("*.safetensors")) for each in ("several", "exact")}
    assert len(files["exact"]) > len(files["several"]) > 1
    assert [path.name for path in files["exact"]] == [
        f"model-{number:05d}-of-{len(files['exact']):05d}.safetensors" for number in range(1, len(files["exact"]) + 1)
    ]
    stored = [load_file(path) for path in files["exact"]]
    index = json.loads((tmp_path / "exact" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        key: path.name for path, tensors in zip(files["exact"], stored, strict=True) for key in tensors
    }
    assert index["metadata"]["total_size"] == sum(each.nbytes for tensors in stored for each in tensors.values())
    assert {key for tensors in stored for key in tensors} == load_file(tmp_path / "one" / "model.safetensors").keys()
    assert all(sum(each.nbytes for each in tensors.values()) <= 2_000 for tensors in stored)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float32)
    assert all(torch.equal(read.get_parameter(name), value) for name, value in model.named_parameters())
    assert (tmp_path / "exact" / "config.json").read_bytes() == (tmp_path / "one" / "config.json").read_bytes()
    assert not (tmp_path / "exact" / "part").exists()


def test_weights_that_are_made_of_several_for_the_files_are_one_file(base: Path) -> None:
    model = load_causal_lm(base)
    model._weight_conversions = [SimpleNamespace(target_patterns=["q_proj", "k_proj", "v_proj"])]

    assert weight_parts(model, model.state_dict(), most_bytes=10) == [list(model.state_dict())]


def test_everything_beside_the_weights_is_copied_byte_for_byte(base: Path, tmp_path: Path) -> None:
    for name, data in COMPANIONS.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(data)
    lora = LoraConfig(r=1, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM)

    save_model(load_causal_lm(base), tmp_path / "whole", source=base)
    save_model(load_reward_model(base, new_head=True), tmp_path / "reward", source=base)
    save_adapter(get_peft_model(load_causal_lm(base), lora), tmp_path / "adapter", source=base)

    names = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", *COMPANIONS}
    for kind in ("whole", "reward", "adapter"):
        assert {name: (tmp_path / kind / name).read_bytes() for name in names} == {
            name: (base / name).read_bytes() for name in names
        }


def test_the_configuration_stays_in_its_own_words(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    rope = config.pop("rope_parameters")
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": None, "x": rope}))

    save_model(load_causal_lm(base), tmp_path / "again", source=base)
    save_model(load_reward_model(base, new_head=True), tmp_path / "rm", source=base)

    assert (tmp_path / "again/config.json").read_bytes() == (base / "config.json").read_bytes()
    old, new = (json.loads((each / "config.json").read_text()) for each in (base, tmp_path / "rm"))
    assert {key for key in old | new if old.get(key) != new.get(key)} == {
        "architectures",
        "id2label",
        "label2id",
        "pad_token_id",
    }
    assert new["architectures"] == ["LlamaForSequenceClassification"]


def test_a_head_of_its_own_is_said_where_the_configuration_ties_it(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(base / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])

    save_model(load_causal_lm(base), tmp_path / "again", source=base)

    assert json.loads((tmp_path / "again/config.json").read_text())["tie_word_embeddings"] is False
    saved = load_file(tmp_path / "again/model.safetensors")
    assert torch.equal(saved["lm_head.weight"], weights["lm_head.weight"])


def test_settings_that_contradict_themselves_are_kept_too(base: Path, tmp_path: Path) -> None:
    settings = b'{"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}'
    (base / "generation_config.json").write_bytes(settings)
    model = load_causal_lm(base)

    save_model(model, tmp_path / "again", source=base)

    assert (tmp_path / "again/generation_config.json").read_bytes() == settings
    assert model.generation_config.temperature == 0.9


def test_no_generation_settings_are_made_up(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").unlink()

    save_model(load_causal_lm(base), tmp_path / "again", source=base)

    assert not (tmp_path / "again/generation_config.json").exists()


# dtypes


def test_weights_come_back_in_the_dtype_they_had(tmp_path: Path, make_toy_tokenizer: Make) -> None:
    base = make_base(tmp_path / "base", make_toy_tokenizer(), dtype=torch.bfloat16, tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 2**-12
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    save_model(load_causal_lm(base), tmp_path / "again", source=base, dtypes=stored_dtypes(base))
    save_model(load_reward_model(base, new_head=True), tmp_path / "rm", source=base, dtypes=stored_dtypes(base))
    save_model(load_causal_lm(base), tmp_path / "exact", source=base)

    again = load_file(tmp_path / "again/model.safetensors")
    assert {name: tensor.dtype for name, tensor in again.items()} == {n: t.dtype for n, t in weights.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert (tmp_path / "again/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert load_file(tmp_path / "rm/model.safetensors")["score.weight"].dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_file(tmp_path / "exact/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "exact/config.json").read_text())["dtype"] == "float32"


def test_what_is_measured_after_rounding_is_what_is_written(base: Path, tmp_path: Path) -> None:
    model, dtypes = load_causal_lm(base), WeightDtypes(torch.bfloat16)
    exact = model(input_ids=torch.tensor(TEXTS[:1])).logits

    round_weights(model, dtypes)
    save_model(model, tmp_path / "half", source=base, dtypes=dtypes)

    measured = model(input_ids=torch.tensor(TEXTS[:1])).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert torch.equal(loaded(input_ids=torch.tensor(TEXTS[:1])).logits, measured)
    assert not torch.equal(measured, exact)
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


# Adapters


def test_an_adapter_names_its_base(base: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(load_causal_lm(base), LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(dict(adapted.named_parameters())[next(n for n, _ in adapted.named_parameters() if "_B" in n)])

    save_adapter(adapted, tmp_path / "adapter", source=base, base=(str(base), None))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    save_adapter(adapted, tmp_path / "hub", source=base, base=("someone/model", "0" * 40))

    torch.testing.assert_close(
        loaded(input_ids=torch.tensor(TEXTS[:1])).logits, adapted.eval()(input_ids=torch.tensor(TEXTS[:1])).logits
    )
    config = json.loads((tmp_path / "hub/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/model", "0" * 40)


def test_an_adapter_keeps_float32_unless_asked(base: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(load_causal_lm(base), LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))

    save_adapter(adapted, tmp_path / "exact", source=base)
    save_adapter(adapted, tmp_path / "half", source=base, dtypes=WeightDtypes(torch.bfloat16))

    dtypes = {
        name: {tensor.dtype for tensor in load_file(tmp_path / name / "adapter_model.safetensors").values()}
        for name in ("exact", "half")
    }
    assert dtypes == {"exact": {torch.float32}, "half": {torch.bfloat16}}


# Ends


@pytest.mark.parametrize(("configured", "expected"), [(2, [2, 5]), ([2, 4], [2, 4, 5]), (None, [5])])
def test_a_learnt_end_is_added_to_the_generation_settings(base: Path, configured: Any, expected: list[int]) -> None:
    edit(base / "generation_config.json", eos_token_id=configured, temperature=0.9)

    assert add_end_tokens(base, [5], config=base / "config.json") == (5,)

    settings = json.loads((base / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["temperature"]) == (expected, 0.9)


def test_generation_settings_with_all_ends_stay_as_they_are(base: Path) -> None:
    edit(base / "generation_config.json", eos_token_id=[2, 5])
    before = (base / "generation_config.json").read_bytes()

    assert add_end_tokens(base, [5], config=base / "config.json") == ()
    assert (base / "generation_config.json").read_bytes() == before


def test_where_there_are_no_generation_settings_the_configuration_speaks(base: Path) -> None:
    (base / "generation_config.json").unlink()

    add_end_tokens(base, [5], config=base / "config.json")

    assert json.loads((base / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 5]}
