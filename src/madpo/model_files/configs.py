"""Configuration files of a model directory: plain data, never code; and what kind of model they describe."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.model_files.generation_settings import GENERATION_CONFIG, check_generation
from madpo.model_files.own_code import AUTO_MAP, own_code_problem
from madpo.model_files.tensors import TensorInfo, read_tensors

_TOKENIZER_SUFFIXES = {".txt", ".model", ".jinja", ".bpe", ".codes", ".vocab", ".tiktoken"}
MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".md", *_TOKENIZER_SUFFIXES})
"""Kinds of files a model directory may hold; every pickle format stays out."""

_MAX_CONFIG_BYTES = 16 << 20
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", GENERATION_CONFIG)
_CODE_KEYS = frozenset({AUTO_MAP, "custom_pipelines", "trust_remote_code", "megatron_config"})
_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})
# Any other value names a kernel repository, whose code would be fetched and run.
_KERNELS = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
_KINDS = {"ForSequenceClassification": "reward", "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm"}
_TEXT_OF_MORE = frozenset({"gemma3"})
"""Models of text and images, by `model_type`, that transformers loads as language models and that take text alone."""
_TEXT_CAN_BE_SAVED = frozenset(["dots3_note", "emu3", "llama4", "mllama", "qwen3_5", "qwen3_5_moe", "qwen4_exp"])
"""Those whose language model transformers loads alone. A test compares them with the transformers that is pinned."""
_HOW_TO_SAVE_IT = """ (no weight may be reported as missing):
AutoModelForCausalLM.from_pretrained(DIR, dtype="auto").save_pretrained(OUT)
AutoTokenizer.from_pretrained(DIR).save_pretrained(OUT)"""
_PATTERN_FIELDS = ("rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save")
_REPETITION = re.compile(r"[*+?{]")
_MAX_PATTERN_CHARS = 1000
_ADAPTER_KINDS = {"SEQ_CLS": "reward", "CAUSAL_LM": "causal_lm"}
_HEAD = re.compile(r"(base_model\.model\.)?(score|classifier)\.((dense|out_proj)\.)?(modules_to_save\.)?weight")


def check_config(directory: Path) -> None:
    """Refuse a directory whose files could run code or need what is not offered.

    Raises:
        InvalidArgumentError: Names the file and what is wrong: a file type outside `MODEL_SUFFIXES`, or as
            `check_settings` has it.
    """
    _require_config(directory)
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.suffix not in MODEL_SUFFIXES:
            raise InvalidArgumentError(
                f"{path.relative_to(directory)} is not a model file: expected {', '.join(sorted(MODEL_SUFFIXES))} "
                "(save weights as safetensors and leave other files out)"
            )
    check_settings(directory)


def check_settings(directory: Path) -> None:
    """Refuse configurations that cannot do without code, of quantised weights, or of an adapter that is not LoRA.

    Raises:
        InvalidArgumentError: Names the file and what is wrong; also where there is no configuration. See also
            `check_generation`.
    """
    _require_config(directory)
    for name in _CONFIGS:
        if (directory / name).is_file():
            _check_keys(name, read_config(directory / name))
    if (directory / GENERATION_CONFIG).is_file():
        check_generation(read_config(directory / GENERATION_CONFIG))
    if (directory / "adapter_config.json").is_file():
        config = read_config(directory / "adapter_config.json")
        if config.get("peft_type") != "LORA":
            raise InvalidArgumentError(f"adapter_config.json: peft_type must be LORA, got {config.get('peft_type')!r}")
        _adapter_kind(config)
        _check_patterns(config)


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


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter of another model."""
    return (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file()


def model_kind(directory: Path, *, base_kind: str = "causal_lm") -> tuple[str, str]:
    """Kind (`causal_lm` or `reward`) and architecture of a model directory, from its configuration.

    Args:
        directory: A whole model, or an adapter.
        base_kind: Kind of the adapter's base, which is that of an adapter that does not say its task, as many tools
            write them; unless it brings a scoring head of its own.

    Raises:
        InvalidArgumentError: There is no configuration, or it names neither kind.
    """
    if is_adapter(directory):
        config = read_config(directory / "adapter_config.json")
        kind = _adapter_kind(config)
        if kind is None:
            kind = "reward" if scoring_head(read_tensors(directory)) else base_kind
        return kind, str(config.get("peft_type", ""))
    config = read_config(directory / "config.json")
    architectures = config.get("architectures")
    if isinstance(architectures, list) and len(architectures) == 1:
        for suffix, kind in _KINDS.items():
            if str(architectures[0]).endswith(suffix):
                return kind, str(architectures[0])
        if str(architectures[0]).endswith("ForConditionalGeneration"):
            if config.get("model_type") in _TEXT_OF_MORE:
                return "causal_lm", str(architectures[0])
            how = _HOW_TO_SAVE_IT if config.get("model_type") in _TEXT_CAN_BE_SAVED else ""
            raise InvalidArgumentError(
                f"{architectures[0]} reads more than text, or has an encoder of its own, which cannot "
                f"be trained here: upload its language model alone, saved as a ...ForCausalLM with its tokenizer{how}"
            )
    raise InvalidArgumentError(
        "architectures in config.json must name one ...ForCausalLM (a policy) or one ...ForSequenceClassification"
        f" (a reward model), got {architectures!r}"
    )


def _adapter_kind(config: Mapping[str, Any]) -> str | None:
    """Kind by an adapter's task; None where it says none."""
    task = config.get("task_type")
    if task is None:
        return None
    if task not in _ADAPTER_KINDS:
        raise InvalidArgumentError(
            f"task_type in adapter_config.json must be CAUSAL_LM or SEQ_CLS, or null for that of its base, got {task!r}"
        )
    return _ADAPTER_KINDS[task]


def _check_patterns(config: Mapping[str, Any]) -> None:
    """Refuse expressions that could take for ever: peft matches these with every layer, and nothing runs meanwhile."""
    for field in _PATTERN_FIELDS:
        value = config.get(field) or ()
        for pattern in map(str, [value] if isinstance(value, str) or not isinstance(value, Iterable) else value):
            if len(_REPETITION.findall(pattern)) > 1 or len(pattern) > _MAX_PATTERN_CHARS:
                raise InvalidArgumentError(
                    f"adapter_config.json: {field} must be names of layers, or expressions that repeat one thing at"
                    f" most, got {pattern[:200]!r}"
                )


def label_count(config: Mapping[str, Any]) -> int:
    """The outputs of a sequence classifier, as transformers reads its `config.json`: 2 where it says nothing."""
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, Mapping):
        return len(names)
    return count if isinstance(count, int) else 2


def scoring_head(tensors: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    """The shape of a sequence classifier's last layer, [labels, hidden], from its tensors by name; None without one."""
    heads = [tensor.shape for name, tensor in tensors.items() if _HEAD.fullmatch(name) and ".dense." not in name]
    return heads[-1] if heads else None


def _require_config(directory: Path) -> None:
    if not any((directory / name).is_file() for name in _CONFIGS[:2]):
        raise InvalidArgumentError("no config.json and no adapter_config.json: is this a model directory?")


def _check_keys(name: str, config: dict[str, Any]) -> None:
    if config.get(AUTO_MAP) and (problem := own_code_problem(name, config)):
        raise InvalidArgumentError(f"{name} asks for code of its own ({AUTO_MAP}), which is never run: {problem}")
    for key, value in _walk({key: value for key, value in config.items() if key != AUTO_MAP}):
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
