"""Writing trained weights into a model directory that is otherwise the one they were loaded from.

Transformers would write the configuration and the tokenizer anew, in the form of its own version: what an older one
does not know is then read as a default, in silence. So both stay as the source has them, but for what training changed.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig

from madpo.model_files.companions import copy_companions
from madpo.model_files.configs import read_config
from madpo.models.dtypes import WeightDtypes, stored_dtypes
from madpo.models.scores import inner_model

CONFIG, _ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NO_LIMIT = 10**18
PART_BYTES = 5 * 10**9
"""Of a file of weights, at most: what hubs and readers of models are used to."""
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
    state = model.state_dict() if state is None else state
    parts = weight_parts(model, state, dtypes=dtypes, most_bytes=PART_BYTES)
    files = [
        save_weights(
            model, directory, state={name: state[name] for name in names}, dtypes=dtypes, part=(number, len(parts))
        )
        for number, names in enumerate(parts)
    ]
    finish_model(model, directory, source=source, files=files, companions=companions)


class WeightsFile(NamedTuple):
    """One of the files that hold a model's weights."""

    name: str
    keys: tuple[str, ...]
    tensor_bytes: int


def save_weights(
    model: Any,
    directory: Path,
    *,
    state: Mapping[str, Tensor],
    dtypes: WeightDtypes | None = None,
    part: tuple[int, int] = (0, 1),
) -> WeightsFile:
    """Write weights, and what transformers says of the model's configuration, into a model directory.

    Args:
        model: See `save_model`.
        directory: Where to; made when missing.
        state: All of the model's state dict, or a part of `weight_parts`.
        dtypes: See `save_model`.
        part: Its number, from 0, and how many there are.
    """
    scratch = directory / "part"
    tensors = dict(state) if dtypes is None else dtypes.cast(state)
    number, count = part
    with _own_generation_settings_aside(model), _saved_by_any_rank(model):
        model.save_pretrained(scratch, state_dict=tensors, max_shard_size=_NO_LIMIT)
    name = WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    (scratch / WEIGHTS).rename(directory / name)
    (scratch / CONFIG).rename(directory / CONFIG)
    shutil.rmtree(scratch)
    return _described(directory / name)


def weight_parts(
    model: Any, state: Mapping[str, Tensor], *, dtypes: WeightDtypes | None = None, most_bytes: int
) -> list[list[str]]:
    """Names of a state dict by file: in its order, tied ones together, as many as fit in `most_bytes`.

    All are in one where transformers makes a tensor of the files from several of the model.
    """
    if any(len(getattr(each, "target_patterns", ())) > 1 for each in getattr(model, "_weight_conversions", None) or ()):
        return [list(state)]
    sizes = {
        name: tensor.numel() * (dtypes.of(name) if dtypes and tensor.is_floating_point() else tensor.dtype).itemsize
        for name, tensor in state.items()
    }
    return in_parts(state, sizes, most_bytes=most_bytes)


def in_parts(tensors: Mapping[str, Tensor], sizes: Mapping[str, int], *, most_bytes: int) -> list[list[str]]:
    """Names of tensors in parts of so many bytes at most, unless one has more; those that are one stay together."""
    parts: list[list[str]] = [[]]
    part_of: dict[Any, list[str]] = {}
    size = 0
    for name, tensor in tensors.items():
        identity = id(tensor) if isinstance(tensor, DTensor) else (tensor.data_ptr() or name, tensor.shape)
        if identity not in part_of:
            if parts[-1] and size + sizes[name] > most_bytes:
                parts.append([])
                size = 0
            size += sizes[name]
            part_of[identity] = parts[-1]
        part_of[identity].append(name)
    return parts


def finish_model(
    model: Any, directory: Path, *, source: Path, files: Sequence[WeightsFile] = (), companions: Path | None = None
) -> None:
    """Write what belongs to weights that are there: configuration, tokenizer, and the index of several files.

    Args:
        model: See `save_model`.
        directory: Has the file with the first part of the weights.
        source: See `save_model`.
        files: All of them, where there are several.
        companions: See `save_model`.
    """
    _write_config(model, directory / CONFIG, source, stored_dtypes(directory).default)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(file.tensor_bytes for file in files)},
            "weight_map": {key: file.name for file in files for key in file.keys},
        }
        (directory / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for each in filter(None, (companions, source)):
        copy_companions(each, directory)


def _described(path: Path) -> WeightsFile:
    with safe_open(path, framework="pt") as file:
        keys = tuple(file.keys())
    with path.open("rb") as raw:
        header_bytes = int.from_bytes(raw.read(8), "little")
    return WeightsFile(path.name, keys, path.stat().st_size - 8 - header_bytes)


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
def _saved_by_any_rank(model: Any) -> Iterator[None]:
    """In a process group transformers writes on the first rank alone."""
    inner = inner_model(model)
    inner.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del inner.should_save_on_this_rank


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
    written, original = read_config(path), read_config(source / CONFIG)
    if written.get("model_type") != original.get("model_type"):
        return  # a part of the source, with a configuration of its own
    changed = original | _changes(model, written, source) | _dtype_change(original, source, dtype)
    if changed == original:
        path.write_bytes((source / CONFIG).read_bytes())
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
