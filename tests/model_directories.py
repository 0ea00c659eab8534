"""Model directories as their makers upload them."""

from pathlib import Path
from typing import Any


def save_directory(model: Any, tokenizer: Any, directory: Path) -> Path:
    """A model or adapter with its tokenizer, as transformers and peft save them."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # peft's
    return directory
