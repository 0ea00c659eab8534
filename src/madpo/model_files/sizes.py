"""Whether a configuration describes a model of the size of its weights, since it is built by these numbers first."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.model_files.configs import is_adapter, read_config
from madpo.model_files.tensors import read_header

_WIDTHS = ("hidden_size", "n_embd", "d_model")
_INNER = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff")
"""Where there are several, the first counts: models of experts may build nothing with their `intermediate_size`."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_VOCABULARY = ("vocab_size",)
_COUNTS = (
    *("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim", "d_kv"),
    *("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
    *("num_labels", "n_positions", "type_vocab_size", "conv_kernel", "state_size"),
)
_SIZES = frozenset({*_WIDTHS, *_INNER, *_LAYERS, *_VOCABULARY, *_COUNTS})
_PER_LAYER = 4096
"""Entries of a list that gives a size for each layer, at most."""
_SMALL = 1024
"""A size that does no harm, whatever the weights."""
_MOST_POSITIONS = 1 << 24
_SMALL_NUMBERS = 1 << 26
"""Numbers of weights that do no harm."""


def check_sizes(directory: Path, *, weights: Iterable[Path] | None = None) -> None:
    """Refuse numbers of a configuration with which a model would be built that its weights cannot fill.

    Every size is at most the longest side of a weight, and every number of layers at most the number of weights; all of
    it together is not much more than is stored.

    Args:
        directory: Of a model or an adapter.
        weights: Those of its files that are; None takes all that are safetensors.

    Raises:
        InvalidArgumentError: With one violation per number; or a file of weights is torn.
    """
    paths = directory.rglob("*.safetensors") if weights is None else weights
    filled = [tensor.shape for path in paths for tensor in read_header(path).values() if prod(tensor.shape)]
    longest = max((side for shape in filled for side in shape), default=0)
    limit = max(longest, len(filled), _SMALL)
    name = "adapter_config.json" if is_adapter(directory) else "config.json"
    if not (directory / name).is_file():
        return
    config = read_config(directory / name)
    faults = list(_adapter_faults(config, limit) if is_adapter(directory) else _faults(config, "", limit))
    if not faults and not is_adapter(directory):
        faults += _total_fault(config, sum(prod(shape) for shape in filled))
    if faults:
        violations = [FieldViolation(f"files.{name}", fault) for fault in faults]
        raise InvalidArgumentError.of(violations, what="the model cannot be taken")


def _faults(config: Mapping[str, Any], path: str, limit: int) -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _faults(value, f"{path}{key}.", limit)
        elif key in _SIZES and value is not None:
            yield from _size_fault(f"{path}{key}", value, limit)
        elif key == "max_position_embeddings" and value is not None:
            yield from _size_fault(f"{path}{key}", value, _MOST_POSITIONS, of="a model may have at most")


def _size_fault(name: str, value: Any, limit: int, *, of: str = "its weights have room for at most") -> Iterator[str]:
    sizes = value if isinstance(value, list) else [value]
    if len(sizes) > _PER_LAYER:
        yield f"{name} has {len(sizes)} entries, at most {_PER_LAYER} are read"
        return
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            yield f"{name} must be a whole number, got {str(size)[:40]}"
            return
        if size > limit:
            yield f"{name} is {str(size)[:40]}, {of} {limit}: is it the configuration of these weights?"
            return


def _adapter_faults(config: Mapping[str, Any], limit: int) -> Iterator[str]:
    ranks = config.get("rank_pattern")
    named = {"r": config.get("r"), **(ranks if isinstance(ranks, Mapping) else {})}
    for name, rank in named.items():
        if rank is not None:
            yield from _size_fault(name, rank, limit)
    if config.get("layer_replication"):
        yield "layer_replication is not read: merge the adapter into its base, and upload that"


def _total_fault(config: Mapping[str, Any], stored: int) -> Iterator[str]:
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    width, inner, layers, vocabulary = (_first(config, names) for names in (_WIDTHS, _INNER, _LAYERS, _VOCABULARY))
    if config.get("num_hidden_groups") is not None:
        layers = 1  # one layer's weights, run again and again
    needed = (config.get("embedding_size") or width) * vocabulary + layers * width * inner
    # Once each of its matrices, where most are several: no whole model has so few weights.
    if needed > 2 * stored + _SMALL_NUMBERS:
        yield (
            f"a model of {layers} layers, width {width}, {inner} inside and {vocabulary} tokens has over {needed} "
            f"weights, stored are {stored} (is it the configuration of these weights?)"
        )


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
