"""Model directories: weights, tokenizer and configuration as plain data, never code; and what kind of model they hold.

Reads headers and configuration only; no torch.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from madpo.errors import FieldViolation, InvalidArgumentError

MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
"""Kinds of files a model directory may hold; every pickle format stays out."""

_MAX_CONFIG_BYTES = 16 << 20
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json")
_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "megatron_config"})
_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})
# Any other value names a kernel repository, whose code would be fetched and run.
_KERNELS = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
_MAX_HEADER_BYTES = 16 << 20
_KINDS = {"ForSequenceClassification": "reward", "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm"}
_ADAPTER_KINDS = {"SEQ_CLS": "reward", "CAUSAL_LM": "causal_lm"}


def check_config(directory: Path) -> None:
    """Refuse a directory whose files could run code or need what is not offered.

    Raises:
        InvalidArgumentError: Names the file and what is wrong: no configuration, a file type outside
            `MODEL_SUFFIXES`, a configuration that asks for code, for quantised weights, or for an adapter that is
            not LoRA.
    """
    if not any((directory / name).is_file() for name in _CONFIGS[:2]):
        raise InvalidArgumentError("no config.json and no adapter_config.json: is this a model directory?")
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.suffix not in MODEL_SUFFIXES:
            raise InvalidArgumentError(
                f"{path.relative_to(directory)} is not a model file: expected {', '.join(sorted(MODEL_SUFFIXES))} "
                "(save weights as safetensors and leave other files out)"
            )
    for name in _CONFIGS:
        if (directory / name).is_file():
            _check_keys(name, read_config(directory / name))
    if (directory / "adapter_config.json").is_file():
        kind = read_config(directory / "adapter_config.json").get("peft_type")
        if kind != "LORA":
            raise InvalidArgumentError(f"adapter_config.json: peft_type must be LORA, got {kind!r}")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file. Raises InvalidArgumentError when it is anything else."""
    if not path.is_file():
        raise InvalidArgumentError(f"no {path.name}: is this a model directory?")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidArgumentError(f"{path.name} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path.name} is not a JSON object")
    return value


def check_files(directory: Path) -> None:
    """Refuse anything but weights in safetensors, configuration and tokenizer files.

    Raises:
        InvalidArgumentError: With one violation per unsafe or broken file.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    faults = [(path.relative_to(directory).as_posix(), _fault(path)) for path in files]
    violations = [FieldViolation(f"files.{path}", fault) for path, fault in faults if fault]
    if not any(path.suffix == ".safetensors" for path in files):
        violations.append(FieldViolation("files", "no .safetensors file: save the weights in that format"))
    if violations:
        raise InvalidArgumentError.of(violations, what="the model cannot be taken")
    check_config(directory)


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter of another model."""
    return (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file()


def model_kind(directory: Path) -> tuple[str, str]:
    """Kind (`causal_lm` or `reward`) and architecture of a model directory, from its configuration.

    Raises:
        InvalidArgumentError: There is no configuration, or it names neither kind.
    """
    if is_adapter(directory):
        config = read_config(directory / "adapter_config.json")
        kind = _ADAPTER_KINDS.get(str(config.get("task_type")))
        if kind is None:
            raise InvalidArgumentError(
                f"task_type in adapter_config.json must be CAUSAL_LM or SEQ_CLS, got {config.get('task_type')!r}"
            )
        return kind, str(config.get("peft_type", ""))
    config = read_config(directory / "config.json")
    architectures = config.get("architectures")
    if isinstance(architectures, list) and len(architectures) == 1:
        for suffix, kind in _KINDS.items():
            if str(architectures[0]).endswith(suffix):
                return kind, str(architectures[0])
    raise InvalidArgumentError(
        "architectures in config.json must name one ...ForCausalLM (a policy) or one ...ForSequenceClassification"
        f" (a reward model), got {architectures!r}"
    )


def weights_dtype(directory: Path) -> str:
    """The dtype that most bytes of the weights have, as safetensors calls it: `BF16`; "" without any."""
    sizes: Counter[str] = Counter()
    for path in directory.rglob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes[str(entry["dtype"])] += end - begin
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def _check_keys(name: str, config: dict[str, Any]) -> None:
    for key, value in _walk(config):
        if not value:
            continue
        if key in _CODE_KEYS:
            raise InvalidArgumentError(f"{name} asks for code of its own ({key}), which is never run: remove it")
        if key == "quantization_config":
            raise InvalidArgumentError(f"{name} describes quantised weights ({key}): give the unquantised model")
        if key in _KERNEL_KEYS and value not in _KERNELS:
            raise InvalidArgumentError(
                f"{name}: unknown {key} {value!r}: expected one of {', '.join(sorted(_KERNELS))}"
            )


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _fault(path: Path) -> str:
    """What is wrong with a file, "" when nothing is."""
    if path.is_symlink() or not path.is_file():
        return "not a regular file"
    if path.suffix not in MODEL_SUFFIXES:
        return f"only {', '.join(sorted(MODEL_SUFFIXES))} files are taken"
    return _safetensors_fault(path) if path.suffix == ".safetensors" else ""


def _safetensors_fault(path: Path) -> str:
    """What is wrong with a safetensors header, "" when its tensors fill the file exactly.

    Source: https://huggingface.co/docs/safetensors (format): 8 bytes little-endian header length, JSON header, data.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            return f"safetensors header of {header_bytes} bytes in a file of {size_bytes}"
        data = file.read(header_bytes)
    try:
        header = json.loads(data)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        spans = sorted((int(begin), int(end)) for begin, end in (entry["data_offsets"] for entry in tensors))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "safetensors header cannot be read"
    position = 0
    for begin, end in spans:
        if begin != position or end < begin:
            return f"safetensors data has a gap or an overlap at byte {position}"
        position = end
    return "" if position == size_bytes - 8 - header_bytes else "safetensors data does not fill the file"
