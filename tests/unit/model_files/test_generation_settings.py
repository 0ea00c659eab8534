"""Values of generation_config.json that mean nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import InvalidArgumentError
from madpo.model_files.configs import check_settings
from madpo.model_files.vocabulary import model_warnings

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def directory(path: Path, **settings: Any) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "generation_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -3, "a number of 0 or more"),
        ("temperature", "hot", "a number of 0 or more"),
        ("temperature", {"a": 1}, "a number of 0 or more"),
        ("top_p", 7, "a number from 0 to 1"),
        ("top_p", float("nan"), "a number from 0 to 1"),
        ("top_k", "x", "a whole number of -1 or more"),
        ("repetition_penalty", -1.0, "a number of 0 or more"),
        ("num_beams", 0, "a whole number of 1 or more"),
        ("max_length", [1], "a whole number of 1 or more"),
    ],
)
def test_a_value_that_means_nothing_is_told_of(tmp_path: Path, field: str, value: Any, expected: str) -> None:
    model = directory(tmp_path, **{field: value})
    check_settings(model)
    (warning,) = model_warnings(model)
    assert f"{field} in generation_config.json is {value!r}, which means nothing ({expected} does)" in warning


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token_id", "a"),
        ("eos_token_id", [1, "a"]),
        ("eos_token_id", 1e9),
        ("pad_token_id", True),
        ("max_new_tokens", "many"),
        ("max_new_tokens", -4),
    ],
)
def test_one_with_which_nothing_can_be_drawn_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_settings(directory(tmp_path, **{field: value}))
    assert str(refused.value).startswith(f"generation_config.json: {field} must be ")
    assert str(refused.value).endswith(f", got {value!r}")


def test_what_models_come_with_is_taken(tmp_path: Path) -> None:
    common = {
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008],
        "pad_token_id": -1,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 1,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.05,
        "max_length": 4096,
        "max_new_tokens": None,
        "transformers_version": "4.40.0",
    }
    model = directory(tmp_path, **common)
    check_settings(model)
    assert list(model_warnings(model)) == []
