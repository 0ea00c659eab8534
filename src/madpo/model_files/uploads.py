"""What of a model directory is taken, and what is left behind or refused."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.model_files.configs import (
    MODEL_SUFFIXES,
    check_config,
    check_settings,
    is_adapter,
    model_kind,
    read_config,
)
from madpo.model_files.shards import weights_faults, weights_files
from madpo.model_files.sizes import check_sizes
from madpo.model_files.tensors import read_header
from madpo.model_files.weights_needed import missing_parts

_SKIPPED = (
    # of the hub
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README*", "*.md", "*.pdf", "*.png", "*.jpg", "*.jpeg"),
    # of trainers
    *("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
    *("trainer_state.json", "trainer_log.jsonl", "*_results.json", "events.out.tfevents.*", "*.log"),
)
_SKIPPED_FOLDERS = ("original", "runs", "logs", "wandb", "checkpoint-*", "onnx", "openvino", "coreml", "metal", "gguf")
_OTHER_WEIGHTS = (
    *("*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data"),
    *("*.ckpt", "*.pkl", "*.pickle", "consolidated*.safetensors"),
)
"""The same weights once more, in forms that are not read, where there are some that are."""

SKIPPED_ON_HUB = (*_SKIPPED, *_OTHER_WEIGHTS, *(f"{folder}/*" for folder in _SKIPPED_FOLDERS))
"""Patterns of the paths that stay on the hub."""


@dataclass(frozen=True, slots=True)
class UploadFiles:
    """What is sent of a model directory: paths in it, in order."""

    taken: tuple[str, ...]
    skipped: tuple[str, ...]
    """Files and folders that are no part of a model, those of unknown kinds among them; hidden ones are not named."""


def files_to_upload(directory: Path) -> UploadFiles:
    """Choose the files of a model directory, and check them as the gateway will.

    Args:
        directory: A clone from the hub, or a trainer's output, say; links to files are followed.

    Raises:
        InvalidArgumentError: No model directory, or one that cannot be taken; names all files that are in the way.
    """
    if not directory.is_dir():
        raise InvalidArgumentError(f"{directory} is not a directory; a model is a directory with a config.json")
    taken: list[str] = []
    skipped: list[str] = []
    for parent, folders, names in os.walk(directory):
        for name in sorted(folders):
            if name.startswith(".") or _is_like(name, _SKIPPED_FOLDERS):
                folders.remove(name)
                skipped += [] if name.startswith(".") else [f"{_relative(directory, parent, name)}/"]
        for name in sorted(names):
            if not name.startswith("."):
                (taken if _may_be_of_model(name) else skipped).append(_relative(directory, parent, name))
    if any(_is_weights(path) for path in taken):
        skipped += [path for path in taken if _is_like(path, _OTHER_WEIGHTS)]
        taken = [path for path in taken if not _is_like(path, _OTHER_WEIGHTS)]
    if not taken:
        raise InvalidArgumentError(f"{directory} holds no files of a model")
    _refuse_faults((path, _fault(directory / path)) for path in sorted(taken))
    _require_weights(directory, taken)
    check_settings(directory)
    check_sizes(directory, weights=[directory / path for path in taken if path.endswith(".safetensors")])
    _require_parts(directory, taken)
    return UploadFiles(tuple(sorted(taken)), tuple(sorted(skipped)))


def check_files(directory: Path) -> None:
    """Refuse anything but weights in safetensors, configuration and tokenizer files.

    Raises:
        InvalidArgumentError: With one violation per unsafe or broken file.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(directory).as_posix() for path in files]
    links = (path.is_symlink() for path in files)
    _refuse_faults(
        (name, "not a regular file" if is_link else _fault(directory / name))
        for name, is_link in zip(names, links, strict=True)
    )
    _require_weights(directory, names)
    check_config(directory)
    check_sizes(directory)
    _require_parts(directory, names)


def _refuse_faults(faults: Iterable[tuple[str, str]]) -> None:
    violations = [FieldViolation(f"files.{path}", fault) for path, fault in faults if fault]
    if violations:
        raise InvalidArgumentError.of(violations, what="the model cannot be taken")


def _require_weights(directory: Path, paths: Sequence[str]) -> None:
    if not any(path.endswith(".safetensors") for path in paths):
        fault = FieldViolation("files", "no .safetensors file: save the weights in that format")
        raise InvalidArgumentError.of([fault], what="the model cannot be taken")
    _refuse_faults(weights_faults(directory, paths))


def _require_parts(directory: Path, paths: Sequence[str]) -> None:
    kind, _ = model_kind(directory)
    if is_adapter(directory):
        return  # whose base tells what it must have
    weights = weights_files(paths)
    tensors = {name: tensor for path in weights for name, tensor in read_header(directory / path).items()}
    faults = missing_parts(read_config(directory / "config.json"), tensors, kind=kind)
    _refuse_faults((weights[0] if len(weights) == 1 else "*.safetensors", fault) for fault in faults)


def _fault(path: Path) -> str:
    """What is wrong with a file, "" when nothing is."""
    if not path.is_file():
        return "not a regular file"
    if path.suffix != ".safetensors" and _is_like(path.name, _OTHER_WEIGHTS):
        return "weights in a form that is not read: save them as safetensors (save_pretrained does)"
    if path.suffix == ".py":
        return "code, which is never run: leave it out"
    if path.suffix not in MODEL_SUFFIXES:
        return f"only {', '.join(sorted(MODEL_SUFFIXES))} files are taken"
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except InvalidArgumentError as error:
            return str(error).removeprefix(f"{path.name}: ")
    return ""


def _may_be_of_model(name: str) -> bool:
    """Whether a file is taken, or would have to be: weights of any form, which may be all there are."""
    known = Path(name).suffix in MODEL_SUFFIXES or _is_like(name, _OTHER_WEIGHTS)
    return known and not _is_like(name, _SKIPPED)


def _is_like(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in patterns)


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors") and not _is_like(path, _OTHER_WEIGHTS)


def _relative(directory: Path, parent: str, name: str) -> str:
    return Path(parent, name).relative_to(directory).as_posix()
