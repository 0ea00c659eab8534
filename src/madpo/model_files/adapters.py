"""Whether an adapter belongs to a base model, by the names and shapes of their tensors."""

import re
from collections.abc import Mapping
from pathlib import Path

from madpo.errors import InvalidArgumentError
from madpo.model_files.tensors import TensorInfo, read_tensors

_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?$")
_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"


def check_adapter(directory: Path, base: Mapping[str, TensorInfo]) -> None:
    """Refuse an adapter that was made for another model.

    Args:
        directory: The adapter.
        base: The tensors of the base model.

    Raises:
        InvalidArgumentError: Its weights are not in the one file that peft reads, a weight has another shape than the
            base's, or none of its layers is in the base.
    """
    if not (directory / _WEIGHTS).is_file():
        there = ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))) or "none"
        raise InvalidArgumentError(
            f"{_WEIGHTS} is missing, the one file that peft reads an adapter from (safetensors files there: {there}): "
            "save the adapter whole, not in shards"
        )
    shapes = {_short(name): tensor.shape for name, tensor in base.items()}
    layers: dict[str, bool] = {}
    for name, tensor in read_tensors(directory).items():
        lora = _LORA.match(name)
        layer = _short(lora["layer"] + ".weight" if lora else name)
        whole = shapes.get(layer)
        if lora:
            layers[layer] = whole is not None
        if whole is None or len(whole) != 2:
            continue  # a new head, or layers that transformers keeps under other names
        size = tensor.shape[0 if lora and lora["factor"] == "B" else -1] if lora else 0
        if (lora and size not in whole) or (lora is None and tensor.shape != whole):
            raise InvalidArgumentError(
                f"the adapter does not fit its base model: {name} has shape {list(tensor.shape)}, {layer} of the base "
                f"{list(whole)}{_advice(layer)}"
            )
    if layers and not any(layers.values()):
        raise InvalidArgumentError(
            f"the adapter does not fit its base model, which has none of its layers ({', '.join(sorted(layers)[:3])}): "
            "give the base it was trained on"
        )


def _short(name: str) -> str:
    """A tensor's name without what wrappers and heads put before it."""
    name = name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    return re.sub(r"^((model|transformer|gpt_neox|language_model)\.)+", "", name)


def _advice(layer: str) -> str:
    if not re.search(r"embed|wte|lm_head|word_embeddings", layer):
        return " (give the base it was trained on)"
    return (
        " (was the vocabulary extended for it? Then give the base with its embeddings resized as well, or merge the "
        "adapter and upload the whole model)"
    )
