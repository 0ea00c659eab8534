"""What of a model's weights must be there, by its configuration and their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.model_files.uploads import check_files, files_to_upload
from madpo.model_files.vocabulary import model_warnings
from madpo.models.load import load_causal_lm

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def directory(into: Path, *, kind: str = "causal_lm", **config: Any) -> Path:
    auto: Any = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
    auto.from_config(LlamaConfig(**SIZES, **config)).save_pretrained(into)
    return into


def rewrite(model: Path, *, without: str = "-", head: Tensor | None = None, **config: Any) -> None:
    file, told = model / "model.safetensors", json.loads((model / "config.json").read_text())
    weights = {name: weight for name, weight in load_file(file).items() if without not in name}
    save_file(weights if head is None else weights | {HEAD: head}, file, metadata={"format": "pt"})
    kept = {name: value for name, value in (told | config).items() if value is not None}
    (model / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("lm_head", "has no lm_head.weight, and by config.json the head is not tied"),
        ("embed_tokens", "has no embeddings"),
        ("layers.2.", "has 2 layers, and config.json tells of 3 (layer 2 is the first that is missing)"),
        ("layers.0.", "layer 0 is the first that is missing"),
    ],
)
def test_a_language_model_without_one_of_its_parts_is_refused_before_anything_is_sent(
    tmp_path: Path, without: str, said: str
) -> None:
    model = directory(tmp_path / "model")
    files_to_upload(model)
    check_files(model)
    rewrite(model, without=without)

    for check in (files_to_upload, check_files):
        with pytest.raises(InvalidArgumentError) as refused:
            check(model)
        (violation,) = refused.value.violations
        assert violation.field == "files.model.safetensors"
        assert said in violation.description
    with pytest.raises(FailedPreconditionError, match=r"lacks .* of its architecture"):
        load_causal_lm(model)


def test_a_model_whose_configuration_counts_fewer_layers_is_refused(tmp_path: Path) -> None:
    model = directory(tmp_path / "model")
    rewrite(model, num_hidden_layers=2)

    for check in (files_to_upload, check_files):
        with pytest.raises(InvalidArgumentError, match=r"has 3 layers, and config\.json tells of 2: layer 2 and those"):
            check(model)
    with pytest.raises(InvalidArgumentError, match=r"layers that its config\.json does not count \(layer 2 is"):
        load_causal_lm(model)


@pytest.mark.parametrize(
    ("added", "config"),
    [
        ({"model.layers.3.eh_proj.weight": (8, 16), "model.layers.3.mlp.up_proj.weight": (8, 8)}, {}),
        ({"model.layers.3.mlp.up_proj.weight": (8, 8)}, {"num_nextn_predict_layers": 1}),
        ({"mtp.layers.7.mlp.up_proj.weight": (8, 8), "mtp.fc.weight": (8, 16)}, {}),
    ],
    ids=["by their names, as of DeepSeek-V3", "counted apart, as of GLM-4.5", "beside the model, as of Qwen3-Next"],
)
def test_layers_that_predict_further_tokens_may_come_with_a_model(
    tmp_path: Path, added: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    model = directory(tmp_path / "model")
    rewrite(model, **config)
    file = model / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(shape) for name, shape in added.items()}, file, {"format": "pt"})

    files_to_upload(model)
    check_files(model)
    load_causal_lm(model)


def test_shards_beside_a_whole_file_count_for_nothing(tmp_path: Path) -> None:
    model = directory(tmp_path / "model")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    weights = load_file(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    files_to_upload(model)

    save_file({name: weights[name] for name in (HEAD, EMBEDDINGS)}, model / "model.safetensors")
    with pytest.raises(FailedPreconditionError, match=r"lacks .* of its architecture"):
        load_causal_lm(model)
    with pytest.raises(InvalidArgumentError, match=r"has 0 layers, and config\.json tells of 3"):
        files_to_upload(model)


def test_embeddings_of_another_vocabulary_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    model = directory(tmp_path / "model")
    rewrite(model, vocab_size=20)
    with pytest.raises(InvalidArgumentError, match=r"embeddings of 16 tokens, and vocab_size in config\.json is 20:"):
        files_to_upload(model)
    with pytest.raises(InvalidArgumentError, match="of other shapes than its config"):
        load_causal_lm(model)


def test_a_family_that_says_nothing_of_its_head_does_as_transformers_does(tmp_path: Path) -> None:
    model = directory(tmp_path / "model")
    rewrite(model, without="lm_head", tie_word_embeddings=None)
    with pytest.raises(InvalidArgumentError, match=r"has no lm_head\.weight"):
        files_to_upload(model)
    rewrite(model, tie_word_embeddings=True)
    files_to_upload(model)
    rewrite(model, tie_word_embeddings=None, model_type="gemma")
    files_to_upload(model)


def test_a_tied_model_may_have_either_end(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", tie_word_embeddings=True)
    files_to_upload(model)
    embeddings = load_file(model / "model.safetensors")[EMBEDDINGS]
    rewrite(model, without="embed_tokens", head=embeddings)
    files_to_upload(model)
    rewrite(model, without="lm_head")
    with pytest.raises(InvalidArgumentError, match=r"has no embeddings"):
        files_to_upload(model)


def test_a_reward_model_without_its_head_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", kind="reward", num_labels=1)
    files_to_upload(model)
    rewrite(model, without="score")
    for check in (files_to_upload, check_files):
        with pytest.raises(InvalidArgumentError, match=r"has no scoring head .*: its scores would be random"):
            check(model)


def test_a_head_that_is_tied_in_the_configuration_alone_is_told_of(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", tie_word_embeddings=True)
    embeddings = load_file(model / "model.safetensors")[EMBEDDINGS]
    assert list(model_warnings(model)) == []
    rewrite(model, head=embeddings.clone())
    assert list(model_warnings(model)) == []

    rewrite(model, head=torch.ones_like(embeddings))
    (warning,) = model_warnings(model)
    assert "config.json ties the head to the embeddings, and lm_head.weight in the files has other numbers" in warning
    rewrite(model, tie_word_embeddings=False)
    assert list(model_warnings(model)) == []
