"""Which layers of a model get an adapter, by name: what a trainer adapts, and what can be known before. No torch."""

from collections.abc import Iterable, Mapping, Sequence

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import ALL_LINEAR
from madpo.spelling import did_you_mean

_WEIGHT = ".weight"


def is_named(layer: str, name: str) -> bool:
    """Whether a name of `target_modules` means a layer: its whole name, or the end of it from a dot on, as in peft."""
    return layer == name or layer.endswith(f".{name}")


def layers_of_tensors(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The layers that may get an adapter, linear ones and embeddings: those whose weight is a matrix.

    Some are not those of the model in memory, which may stack the experts of its files into one tensor.

    Args:
        shapes: Of a model's tensors by name, such as stand in the headers of its safetensors files.
    """
    return {name.removesuffix(_WEIGHT) for name, shape in shapes.items() if name.endswith(_WEIGHT) and len(shape) == 2}


def require_layers(names: Sequence[str], layers: Iterable[str], *, field: str) -> None:
    """Refuse names that no layer has, of those that may get an adapter.

    Args:
        names: Of `target_modules` or `exclude_modules`.
        layers: Names of the model's linear layers and embeddings.
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
        f"the model has no layer {', '.join(absent)} that an adapter can go on{meant or ';'} it has "
        f"{', '.join(there)} ({ALL_LINEAR} takes every linear one but the head)",
    )
