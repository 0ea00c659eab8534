"""Model directories with nothing but a tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tokenizer_directory(make_toy_tokenizer: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Saves a toy tokenizer as the directory of a model; arguments are those of `make_toy_tokenizer`."""

    def save(**options: Any) -> Path:
        directory = tmp_path / "model"
        make_toy_tokenizer(**options).save_pretrained(directory)
        (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return directory

    return save
