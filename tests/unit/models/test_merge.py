"""A merged adapter says what base and adapter said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForSequenceClassification,
)

from madpo.errors import FailedPreconditionError
from madpo.model_files.tensors import read_tensors
from madpo.models import merge
from madpo.models.load import load_causal_lm, load_reward_model
from madpo.models.merge import load_merged, write_merged
from madpo.models.save import save_adapter, save_model
from madpo.models.scores import reward_scores
from tests.model_directories import save_directory

IDS = torch.tensor([[1, 6, 8, 9, 2], [1, 7, 2, 5, 0]])
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LINEAR = ["q_proj", "v_proj"]
ADAPTERS = {
    "linear": {"target_modules": LINEAR},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "rsLoRA": {"target_modules": LINEAR, "use_rslora": True},
    "on embeddings": {"target_modules": [*LINEAR, "embed_tokens"]},
    "on the head": {"target_modules": [*LINEAR, "lm_head"]},
    "on both": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole embeddings": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens"]},
    "whole embeddings and head": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]},
    "whole and tied": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path, make_toy_tokenizer: Callable[..., Any]) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=12, **SIZES, initializer_range=0.5, tie_word_embeddings=request.param)
    return save_directory(LlamaForCausalLM(config), make_toy_tokenizer(), tmp_path / "base")


def make_adapter(base: Path, directory: Path, options: dict[str, Any]) -> torch.Tensor:
    """An adapter far from its start, and its logits."""
    adapted: Any = get_peft_model(load_causal_lm(base), LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    save_adapter(adapted, directory, source=base)
    logits: torch.Tensor = adapted.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`", "ignore:.*ensure_weight_tying")
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_merged_model_has_the_logits_of_base_and_adapter(base: Path, tmp_path: Path, name: str) -> None:
    expected = make_adapter(base, tmp_path / "adapter", ADAPTERS[name])

    merged = load_merged(tmp_path / "adapter", base_directory=base, kind="causal_lm")
    save_model(merged, tmp_path / "merged", source=base)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_stay_tied_where_the_adapter_leaves_them_alone(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter", ADAPTERS["linear"])

    save_model(
        load_merged(tmp_path / "adapter", base_directory=base, kind="causal_lm"), tmp_path / "merged", source=base
    )

    assert (tmp_path / "merged/config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`")
@pytest.mark.parametrize("base", [True], indirect=True)
def test_a_merge_that_changes_what_the_model_says_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(base, tmp_path / "adapter", ADAPTERS["on embeddings"])
    monkeypatch.setattr(merge, "_untie_what_is_adapted", lambda model: None)

    with pytest.raises(FailedPreconditionError, match=r"adapter cannot be merged.*logits differ by"):
        load_merged(tmp_path / "adapter", base_directory=base, kind="causal_lm")


def test_a_merged_reward_model_has_the_same_scores(base: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=LINEAR, modules_to_save=["score"], task_type="SEQ_CLS")
    adapted: Any = get_peft_model(load_reward_model(base, new_head=True), lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    save_adapter(adapted, tmp_path / "adapter", source=base)

    merged = load_merged(tmp_path / "adapter", base_directory=base, kind="reward")
    save_model(merged, tmp_path / "merged", source=base)

    mask = torch.ones_like(IDS)
    expected = reward_scores(adapted.eval(), IDS, mask)
    torch.testing.assert_close(reward_scores(load_reward_model(tmp_path / "merged"), IDS, mask), expected)


def test_a_model_that_reads_its_score_at_eos_is_merged(tmp_path: Path, make_toy_tokenizer: Callable[..., Any]) -> None:
    sizes = {"vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    ends = {"eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
    model = T5ForSequenceClassification(T5Config(**sizes, **ends, num_labels=1))
    base = save_directory(model, make_toy_tokenizer(), tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q", "v"], modules_to_save=["classification_head"], task_type="SEQ_CLS")
    adapted: Any = get_peft_model(load_reward_model(base), lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    save_adapter(adapted, tmp_path / "adapter", source=base)

    write_merged(tmp_path / "adapter", tmp_path / "merged", base_directory=base, kind="reward")

    ids = torch.tensor([[1, 6, 8, 9, 2], [1, 7, 3, 5, 2]])
    expected = reward_scores(adapted.eval(), ids, torch.ones_like(ids))
    merged = reward_scores(load_reward_model(tmp_path / "merged"), ids, torch.ones_like(ids))
    torch.testing.assert_close(merged, expected)


def test_a_merged_model_is_exact_where_its_base_is_half_and_rounded_only_when_asked(
    tmp_path: Path, make_toy_tokenizer: Callable[..., Any]
) -> None:
    config = LlamaConfig(vocab_size=12, **SIZES, initializer_range=0.5)
    base = save_directory(LlamaForCausalLM(config).bfloat16(), make_toy_tokenizer(), tmp_path / "base")
    expected = make_adapter(base, tmp_path / "adapter", ADAPTERS["linear"])
    paths = {"base_directory": base, "kind": "causal_lm"}

    write_merged(tmp_path / "adapter", tmp_path / "exact", **paths)
    write_merged(tmp_path / "adapter", tmp_path / "rounded", **paths, exact=False)

    exact, rounded = (load_causal_lm(tmp_path / name)(input_ids=IDS).logits for name in ("exact", "rounded"))
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(rounded, expected, atol=1e-4)
    tensors = read_tensors(tmp_path / "exact")
    assert {name.split(".")[-2] for name, tensor in tensors.items() if tensor.dtype == "F32"} == set(LINEAR)
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "rounded").values()} == {"BF16"}
