"""Building of models within what their files can fill, whatever their configurations say.

A model is built by the numbers of its configuration before any weight is read; there are numbers that no list of names
knows. So it is built without memory first (on the meta device), and what is built is counted tensor by tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from madpo.errors import InvalidArgumentError
from madpo.model_files.tensors import read_header

_SMALL_NUMBERS = 1 << 28
"""Numbers in tensors beside the weights, such as masks and tables of positions, that do no harm."""
_NUMBERS_OF_STORED = 8
_SMALL_TENSORS = 1 << 16
_TENSORS_OF_STORED = 64
"""Each weight is made, filled and looked at several times."""


def bounded_class(auto_class: Any, config: Any, directory: Path) -> Any:
    """The class of the model that a configuration describes, once it is known to fit the weights beside it.

    Args:
        auto_class: Of the automatic classes of transformers.
        config: The model's configuration.
        directory: Of the model.

    Raises:
        InvalidArgumentError: It takes far more numbers or tensors than the files hold.
    """
    with BoundedBuilding(directory), torch.device("meta"):
        return type(auto_class.from_config(deepcopy(config)))


class BoundedBuilding(TorchFunctionMode):
    """Ends the building of a model that takes far more numbers or tensors than its files hold.

    Counts what torch's functions return in this thread while the mode is on.

    Args:
        directory: Of the model.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        stored = [tensor.shape for path in directory.rglob("*.safetensors") for tensor in read_header(path).values()]
        self._numbers_left = _NUMBERS_OF_STORED * sum(map(prod, stored)) + _SMALL_NUMBERS
        self._tensors_left = _TENSORS_OF_STORED * len(stored) + _SMALL_TENSORS

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call, and count what is new in the result."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(result is each for each in args):
            self._numbers_left -= result.numel()
            self._tensors_left -= 1
            if self._numbers_left < 0 or self._tensors_left < 0:
                what = "numbers" if self._numbers_left < 0 else "tensors"
                raise InvalidArgumentError(
                    f"its configuration describes a model of far more {what} than its weights have: give the "
                    "configuration of these weights"
                )
        return result
