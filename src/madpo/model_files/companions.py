"""What stands beside the weights and is never trained: tokenizer, chat template, generation settings, processor.

A tokenizer that is loaded and saved again is another one to whoever reads its files: transformers 5 writes classes that
4 does not know, and drops `tokenizer.model` or `vocab.json`. So these files are copied, never written.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from madpo.model_files.configs import read_config
from madpo.model_files.generation_settings import GENERATION_CONFIG

MODEL_RECORD = "madpo.json"
"""What a saved adapter says of its base: `base_model_id`, the stored model it belongs to."""

_OF_THE_WEIGHTS = frozenset({"config.json", "adapter_config.json", MODEL_RECORD})
_SUFFIXES_OF_THE_WEIGHTS = (".safetensors", ".index.json", ".md")


def is_companion(path: str) -> bool:
    """Whether a file of a model directory, by its path in it, is one that training leaves as it is."""
    name = path.rpartition("/")[2]
    return name not in _OF_THE_WEIGHTS and not name.endswith(_SUFFIXES_OF_THE_WEIGHTS)


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory brings a tokenizer of its own."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def copy_companions(source: Path, directory: Path) -> None:
    """Copy those files byte for byte; none that is there is replaced."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        target = directory / relative
        if path.is_file() and is_companion(relative.as_posix()) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def add_end_tokens(directory: Path, ids: Collection[int], *, config: Path) -> tuple[int, ...]:
    """Let generation stop at tokens that the generation settings of a model directory do not name yet.

    Args:
        directory: Holds the settings, where there are any.
        ids: The tokens.
        config: The model's `config.json`, which speaks for it where there are none.

    Returns:
        Those that were added, in order; where there are none the file stays as it is, byte for byte.
    """
    path = directory / GENERATION_CONFIG
    settings = read_config(path) if path.is_file() else _settings_of(read_config(config))
    known = end_token_ids(settings)
    added = tuple(sorted(set(ids) - set(known)))
    if added:
        settings["eos_token_id"] = [*known, *added]
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return added


def generation_ends(directory: Path) -> list[int] | None:
    """The tokens at which a model stops to generate, from the files of its directory; None where none of them says."""
    for name in (GENERATION_CONFIG, "config.json"):
        path = directory / name
        if path.is_file() and (ids := end_token_ids(_settings_of(read_config(path)))):
            return ids
    return None


def end_token_ids(settings: dict[str, Any]) -> list[int]:
    """The tokens that end a text, of a model's configuration or generation settings: an id, a list, or nothing."""
    configured = settings.get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    return [int(token) for token in ids if isinstance(token, int)]


def _settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a configuration where there are no generation settings."""
    text = config.get("text_config")
    merged = config | (text if isinstance(text, dict) else {})
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: merged[name] for name in names if merged.get(name) is not None}
