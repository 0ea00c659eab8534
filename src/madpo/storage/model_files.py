"""What may be in a model directory, and what kind of model it is; reads headers and configuration only."""

import json
import struct
from pathlib import Path

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.models.directory import MODEL_SUFFIXES, check_config, read_config

_MAX_HEADER_BYTES = 16 << 20
_KINDS = {"ForSequenceClassification": "reward", "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm"}
_ADAPTER_KINDS = {"SEQ_CLS": "reward", "CAUSAL_LM": "causal_lm"}


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
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise InvalidArgumentError(f"the model cannot be taken: {text}", violations)
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
