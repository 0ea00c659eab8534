"""Writing trained weights into a model directory that is otherwise the one they were loaded from.

Transformers would write the configuration and the tokenizer anew, in the form of its own version: what an older one
does not know is then read as a default, in silence. So both stay as the source has them, but for what training changed.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from madpo.model_files.companions import GENERATION_CONFIG, copy_companions
from madpo.model_files.configs import read_config
from madpo.models.dtypes import WeightDtypes, stored_dtypes
from madpo.models.scores import inner_model

_CONFIG, _ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
_DTYPE_KEYS = ("dtype", "torch_dtype")


def save_model(
    model: Any,
    directory: Path,
    *,
    source: Path,
    state: Mapping[str, Tensor] | None = None,
    dtypes: WeightDtypes | None = None,
    companions: Path | None = None,
) -> None:
    """Write a whole model; the same weights give the same bytes.

    Args:
        model: Loaded from `source`, perhaps with another head, and trained.
        directory: Where to; made when missing.
        source: A model directory, whose tokenizer, template, generation settings and configuration are copied.
        state: The model's state dict, where its own tensors are not whole.
        dtypes: Of the files; None keeps those of the tensors.
        companions: A directory whose tokenizer, template and generation settings go before those of the source.
    """
    tensors = model.state_dict() if state is None else dict(state)
    tensors = tensors if dtypes is None else dtypes.cast(tensors)
    with _own_generation_settings_aside(model):
        model.save_pretrained(directory, state_dict=tensors)
    (directory / GENERATION_CONFIG).unlink(missing_ok=True)
    _write_config(model, directory / _CONFIG, source, stored_dtypes(directory).default)
    for each in filter(None, (companions, source)):
        copy_companions(each, directory)


def save_adapter(
    model: Any,
    directory: Path,
    *,
    source: Path,
    base: tuple[str, str | None] = ("", None),
    state: Mapping[str, Tensor] | None = None,
    dtypes: WeightDtypes | None = None,
) -> None:
    """Write a LoRA adapter; the same weights give the same bytes.

    Args:
        model: A peft model over the one loaded from `source`.
        directory: Where to; made when missing.
        source: Directory of the base model; tokenizer, template and generation settings are copied.
        base: Name and revision under which others find the base model.
        state: The model's state dict, where its own tensors are not whole.
        dtypes: Of the files; None keeps those of the tensors.
    """
    # Embeddings that an adapter is on are the base's, and stay with it.
    model.save_pretrained(directory, state_dict=None if state is None else dict(state), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    if dtypes is not None:
        weights = directory / _ADAPTER_WEIGHTS
        save_file(dtypes.cast(load_file(weights)), weights, metadata={"format": "pt"})
    path = directory / _ADAPTER_CONFIG
    config = read_config(path)
    config["base_model_name_or_path"], config["revision"] = base[0] or None, base[1]
    for key in ("target_modules", "modules_to_save"):  # peft writes sets in hash order
        if isinstance(config[key], list):
            config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_companions(source, directory)


@contextmanager
def _own_generation_settings_aside(model: Any) -> Iterator[None]:
    """Transformers refuses to save settings that contradict themselves, as those of several well-known models do."""
    inner = inner_model(model)
    settings = getattr(inner, "generation_config", None)
    if settings is None:
        yield
        return
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = settings


def _write_config(model: Any, path: Path, source: Path, dtype: torch.dtype) -> None:
    """The source's configuration with what is different of the model; byte for byte where nothing is."""
    written, original = read_config(path), read_config(source / _CONFIG)
    if written.get("model_type") != original.get("model_type"):
        return  # a part of the source, with a configuration of its own
    changed = original | _changes(model, written, source) | _dtype_change(original, source, dtype)
    if changed == original:
        path.write_bytes((source / _CONFIG).read_bytes())
    else:
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _changes(model: Any, written: Mapping[str, Any], source: Path) -> dict[str, Any]:
    loaded = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    changes: dict[str, Any] = {"architectures": written["architectures"]}
    if model.config.num_labels != loaded.num_labels:
        changes |= {key: written[key] for key in ("id2label", "label2id")}
    for name in ("pad_token_id", "tie_word_embeddings"):
        value = getattr(model.config, name, None)
        if value != getattr(loaded, name, None):
            changes[name] = value
    return changes


def _dtype_change(original: Mapping[str, Any], source: Path, dtype: torch.dtype) -> dict[str, str]:
    if dtype == stored_dtypes(source).default:
        return {}
    keys = [key for key in _DTYPE_KEYS if key in original] or _DTYPE_KEYS[:1]
    return dict.fromkeys(keys, str(dtype).removeprefix("torch."))
