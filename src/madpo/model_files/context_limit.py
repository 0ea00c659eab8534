"""How many tokens a model can read at once, by its configuration: one rule for gateway, trainer, scorer and evaluator.

Beyond a learned table of positions there is nothing to look up. Rotary positions go on, but no model was trained on
them: they are refused as well, unless the configuration scales them. No torch. The tokenizer's `model_max_length` is
not looked at: it is often missing, and often left over from another model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madpo.model_files.configs import is_adapter, read_config

_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_seq_length", "n_ctx")
"""Names of the number of positions, the newest first; a model has one of them."""

_EXTENDED = frozenset({"default", "llama3", "longrope", "su", "mrope", "proportional"})
"""Kinds of rotary positions with which the configuration's number of positions is that after scaling."""

_ROBERTA = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text")
_OFFSET = frozenset({*_ROBERTA, "longformer", "mpnet"})
"""Models that begin to count behind the padding token's position, which their table has rows for."""


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Most tokens of one text; None where the architecture sets no bound.

    Args:
        config: The object in `config.json`, also of a model of text and images.

    Source: https://huggingface.co/docs/transformers/internal/rope_utils (factors), the models' own code (offsets).
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**config, **text}
    length = next((value for name in _LENGTHS if (value := _positive(config.get(name)))), None)
    if length is None:
        return None
    if config.get("model_type") in _OFFSET:
        padding = config.get("pad_token_id")
        return length - (padding if isinstance(padding, int) else 1) - 1
    return max(length, _scaled(length, config))


def directory_limit(directory: Path, *, base_directory: Path | None = None) -> int | None:
    """The limit of a model directory; of an adapter that of its base, None without one.

    Raises:
        InvalidArgumentError: There is no configuration that can be read.
    """
    if is_adapter(directory):
        return None if base_directory is None else directory_limit(base_directory)
    return context_limit(read_config(directory / "config.json"))


def _scaled(length: int, config: Mapping[str, Any]) -> int:
    """The positions that scaling makes of them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    # Models with a kind of positions for each kind of layer give the scaled number.
    if not isinstance(scaling, Mapping) or any(isinstance(value, Mapping) for value in scaling.values()):
        return length
    kind, factor = scaling.get("rope_type", scaling.get("type", "default")), scaling.get("factor")
    if kind in _EXTENDED or str(config.get("model_type", "")).startswith("gemma3"):
        return length
    if not isinstance(factor, (int, float)) or factor < 1:
        return length
    return int((_positive(scaling.get("original_max_position_embeddings")) or length) * factor)


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
