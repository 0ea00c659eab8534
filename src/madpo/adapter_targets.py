"""Which layers of a model get an adapter, by name: what a trainer adapts, and what can be known before. No torch."""

from collections.abc import Iterable, Sequence

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import ALL_LINEAR
from madpo.spelling import did_you_mean

_TENSOR_SUFFIXES = (".weight", ".bias")


def is_named(layer: str, name: str) -> bool:
    """Whether a name of `target_modules` means a layer: its whole name, or the end of it from a dot on, as in peft."""
    return layer == name or layer.endswith(f".{name}")


def layers_of_tensors(tensors: Iterable[str]) -> set[str]:
    """The layers whose tensors these are, such as stand in the headers of a model's safetensors files.

    Some are not those of the model in memory, which may stack the experts of its files into one tensor.
    """
    return {name.removesuffix(end) for name in tensors for end in _TENSOR_SUFFIXES if name.endswith(end)}


def require_layers(names: Sequence[str], layers: Iterable[str], *, field: str) -> None:
    """Refuse names that no layer has.

    Args:
        names: Of `target_modules` or `exclude_modules`.
        layers: Names of the model's layers.
        field: Of the spec, for the error.

    Raises:
        InvalidArgumentError: Names those that are not there, and those that are.
    """
    known = list(layers)
    absent = [name for name in names if name != ALL_LINEAR and not any(is_named(layer, name) for layer in known)]
    if not absent:
        return
    there = sorted({layer.rpartition(".")[2] for layer in known} - {""})
    meant = did_you_mean(absent[0], there)
    raise InvalidArgumentError.in_field(
        field,
        f"the model has no layer {', '.join(absent)}{meant or ';'} it has {', '.join(there)} ({ALL_LINEAR} takes every "
        "linear one but the head)",
    )
