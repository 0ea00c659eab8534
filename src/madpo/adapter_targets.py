"""Which layers of a model get an adapter, by name: what a trainer adapts, and what can be known before. No torch."""

import re
from collections.abc import Iterable, Mapping, Sequence

from madpo.errors import InvalidArgumentError
from madpo.expressions import matching
from madpo.jobs.training import ALL_LINEAR, is_pattern
from madpo.spelling import did_you_mean

_WEIGHT = ".weight"
_OF_AN_EXPERT = re.compile(r"\.experts\.\d+\.")
_LANGUAGE_MODEL = re.compile(r"(^|\.)language_model\.")
"""Where transformers keeps the layers that text goes through, in a model that has others."""
_HEADS = ("lm_head.weight", "score.weight")
_STATE_SPACE = (".A_log", ".D")
"""What the parameters of a state-space mixer (Mamba) are called, and those of nothing else."""


def layers_of_tensors(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The layers that may get an adapter, linear ones and embeddings: those whose weight is a matrix.

    The experts of a mixture are none: in memory they are all stacked into one tensor. Nor is what a model of more than
    text has beside its language model.

    Args:
        shapes: Of a model's tensors by name, such as stand in the headers of its safetensors files.
    """
    if any(_LANGUAGE_MODEL.search(name) for name in shapes):
        shapes = {name: shape for name, shape in shapes.items() if _LANGUAGE_MODEL.search(name) or name in _HEADS}
    layers = {
        name.removesuffix(_WEIGHT) for name, shape in shapes.items() if name.endswith(_WEIGHT) and len(shape) == 2
    }
    return {layer for layer in layers if not _OF_AN_EXPERT.search(layer)} - read_by_kernels(layers, shapes)


def read_by_kernels(layers: Iterable[str], parameters: Iterable[str]) -> set[str]:
    """Layers that would pass an adapter by: kernels of state-space mixers read the weights of all but the first.

    Args:
        layers: Names of linear layers.
        parameters: Names of all parameters of the model.
    """
    one, other = ({name.removesuffix(end) for name in parameters if name.endswith(end)} for end in _STATE_SPACE)
    mixers = one & other
    parts = ((layer, *layer.rpartition(".")[::2]) for layer in layers)
    return {layer for layer, parent, last in parts if parent in mixers and not last.startswith("in_proj")}


def require_layers(names: Sequence[str], layers: Iterable[str], *, field: str) -> frozenset[str]:
    """The layers that names mean, of those that may get an adapter; each name must mean one.

    Args:
        names: Of `target_modules` or `exclude_modules`.
        layers: Names of the model's linear layers and embeddings.
        field: Of the spec, for the error.

    Raises:
        InvalidArgumentError: Names those that are not there, and those that are; or see `matching`.
    """
    known = list(layers)
    try:
        meant = _meant([name for name in dict.fromkeys(names) if name != ALL_LINEAR], known)
    except InvalidArgumentError as error:
        raise InvalidArgumentError.in_field(field, str(error)) from error
    absent = [name for name, found in meant.items() if not found]
    if not absent:
        return frozenset().union(*meant.values())
    there = sorted({layer.rpartition(".")[2] for layer in known} - {""})
    suggestion = did_you_mean(absent[0], there)
    raise InvalidArgumentError.in_field(
        field,
        f"the model has no layer {', '.join(absent)} that an adapter can go on{suggestion or ';'} it has "
        f"{', '.join(there)} ({ALL_LINEAR} takes every linear one but the head)",
    )


def _meant(names: Sequence[str], layers: Sequence[str]) -> dict[str, frozenset[str]]:
    """By name the layers that it means, as in peft: by its name, by its end from a dot on, or by a pattern."""
    patterns = [name for name in names if is_pattern(name)]
    found = dict(zip(patterns, matching(patterns, layers), strict=True))
    for name in names:
        if name not in found:
            found[name] = [layer for layer in layers if layer == name or layer.endswith(f".{name}")]
    return {name: frozenset(found[name]) for name in names}
