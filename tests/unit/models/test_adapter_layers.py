"""Layers that an adapter's configuration means by an expression."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, TaskType, get_peft_model

from madpo import expressions
from madpo.errors import InvalidArgumentError
from madpo.models.adapter_layers import name_layers
from madpo.models.load import load_causal_lm
from tests.model_directories import save_directory

NAMES = ["model", "model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"]
ENDLESS = "(([a-z_.0-9]+)+)+!"


def test_names_stand_in_the_place_of_expressions() -> None:
    config = LoraConfig(target_modules=r".*_proj", exclude_modules=r".*\.1\..*")

    name_layers(config, NAMES)

    assert config.target_modules == set(NAMES[1:])
    assert config.exclude_modules == {"model.layers.1.q_proj"}


def test_an_expression_that_means_no_layer_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="means no layer of the base"):
        name_layers(LoraConfig(target_modules=r".*nothing"), NAMES)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"])
def test_what_peft_matches_itself_is_tried_before(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fine, endless = r"(q|v)_proj", "(.|.)" * 14 + "!"
    other = {"layers_to_transform": [0]} if field == "layers_pattern" else {}

    def config(expression: str) -> LoraConfig:
        value: Any = {expression: 4} if field in ("rank_pattern", "alpha_pattern") else [expression]
        return LoraConfig(target_modules=["q_proj"], **{field: value}, **other)

    name_layers(config(fine), NAMES)
    monkeypatch.setattr(expressions, "_WITHIN_S", 1.0)
    with pytest.raises(InvalidArgumentError, match="came to nothing in 1 s"):
        name_layers(config(endless), NAMES * 1000)


def test_an_adapter_is_loaded_by_its_expression_and_given_up_where_that_has_no_end(
    make_toy_lm: Callable[..., Any],
    make_toy_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, adapter = tmp_path / "policy", tmp_path / "adapter"
    save_directory(make_toy_lm(), make_toy_tokenizer(), policy)
    lora = LoraConfig(r=2, target_modules=r".*\.0\..*q_proj", task_type=TaskType.CAUSAL_LM)
    get_peft_model(load_causal_lm(policy), lora).save_pretrained(adapter)
    (adapter / "README.md").unlink()
    config = adapter / "adapter_config.json"

    adapted = load_causal_lm(adapter, base_directory=policy)

    assert len([name for name, _ in adapted.named_parameters() if "lora_A" in name]) == 1
    config.write_text(config.read_text().replace(r".*\\.0\\..*q_proj", ENDLESS))
    monkeypatch.setattr(expressions, "_WITHIN_S", 1.0)
    with pytest.raises(InvalidArgumentError, match="came to nothing"):
        load_causal_lm(adapter, base_directory=policy)
