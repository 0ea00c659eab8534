"""In which dtype a model's weights are kept: they are trained in float32, and left as the base model has them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madpo.model_files.tensors import read_tensors

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True, slots=True)
class WeightDtypes:
    """Dtypes of floating-point tensors by name."""

    default: torch.dtype = torch.float32
    """Of a tensor that is not named: a new head, say."""
    named: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Of those that have another."""

    def of(self, name: str) -> torch.dtype:
        """That of one tensor."""
        return self.named.get(name, self.default)

    def cast(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in these dtypes; tied tensors stay one, whole numbers stay as they are."""
        done: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}

        def cast_one(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            dtype = self.of(name)
            return done.setdefault((tensor.data_ptr(), tensor.shape, dtype), tensor.to(dtype))

        return {name: cast_one(name, tensor) for name, tensor in state.items()}

    def widened(self, state: Mapping[str, Tensor]) -> "WeightDtypes":
        """These, with the own dtype of each tensor of a state dict that would not be exact in them."""
        exact = {
            name: tensor.dtype
            for name, tensor in state.items()
            if tensor.is_floating_point() and not torch.equal(tensor.to(self.of(name)).to(tensor.dtype), tensor)
        }
        return WeightDtypes(self.default, {**self.named, **exact})


def stored_dtypes(directory: Path) -> WeightDtypes:
    """Those of a model directory's files; the default is that of most of its numbers."""
    stored = {
        name: (_DTYPES[tensor.dtype], prod(tensor.shape))
        for name, tensor in read_tensors(directory).items()
        if tensor.dtype in _DTYPES
    }
    sizes: Counter[torch.dtype] = Counter()
    for dtype, size in stored.values():
        sizes[dtype] += size
    if not sizes:
        return WeightDtypes()
    default = sizes.most_common(1)[0][0]
    return WeightDtypes(default, {name: dtype for name, (dtype, _) in stored.items() if dtype != default})


@torch.no_grad()
def round_weights(model: Any, dtypes: WeightDtypes) -> None:
    """Give trained weights the values they will be stored with, in place; they keep the dtype they are computed in.

    What is measured afterwards is what whoever loads the files will have. Sharded models are rounded part by part.
    """
    for name, parameter in model.named_parameters():
        dtype = dtypes.of(name)
        if parameter.requires_grad and torch.finfo(dtype).bits < torch.finfo(parameter.dtype).bits:
            parameter.copy_(parameter.to(dtype))
