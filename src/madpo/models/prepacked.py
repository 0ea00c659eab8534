"""Weights of a frozen model on a CPU, laid out once as oneDNN's matrix products want them.

torch multiplies float32 matrices by MKL, which on processors of other makers does half of what they can, and lays half
precision weights out anew in every product. A layer's bits change with this, and stay a function of its input's shape.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

_ROWS_IN_MIND = 256
"""Of an input, when a layout is chosen; others are as fast."""
_PROBE_ROWS = 4
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of a product, over 1 + the largest value."""

Layer = TypeVar("Layer", bound=nn.Module)


class PrepackedLinear(nn.Module):
    """A linear layer without gradient, whose weight is there in oneDNN's layout alone.

    Args:
        linear: On a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_IN_MIND)
        self.weight = weight.to("meta")
        """Its shape and dtype, for those that look at them."""
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """The product, of the input's leading shape."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return product

    def unpacked(self) -> nn.Linear:
        """The layer as it was, to the bit."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.packed.to_dense(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias, requires_grad=False)
        return linear.train(self.training)


def prepack(model: nn.Module) -> int:
    """Lay out the linear layers within a frozen model; how many were. One that would not agree stays as it is.

    Args:
        model: On a CPU; no gradient is asked of it any more.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    made: dict[nn.Module, PrepackedLinear | None] = {}
    for parent, name, child in _children(model, nn.Linear):
        if child not in made:
            made[child] = _prepacked(child)
        if (packed := made[child]) is not None:
            setattr(parent, name, packed)
    return sum(each is not None for each in made.values())


def unpack(model: nn.Module) -> None:
    """Undo `prepack`."""
    made: dict[nn.Module, nn.Linear] = {}
    for parent, name, child in _children(model, PrepackedLinear):
        if child not in made:
            made[child] = child.unpacked()
        setattr(parent, name, made[child])


def _children(model: nn.Module, kind: type[Layer]) -> list[tuple[nn.Module, str, Layer]]:
    """Layers of exactly this kind, with their parents: one of another kind may do something else."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]


@torch.no_grad()
def _prepacked(linear: nn.Linear) -> PrepackedLinear | None:
    """The layer laid out; None where oneDNN does not take it, or gives other products."""
    weight = linear.weight
    if weight.dtype not in _TOLERANCE:
        return None
    probe = torch.linspace(-1, 1, _PROBE_ROWS * linear.in_features).view(_PROBE_ROWS, -1).to(weight.dtype)
    try:
        packed = PrepackedLinear(linear)
        product = packed(probe)
    except RuntimeError:
        return None
    expected = linear(probe)
    allowed = _TOLERANCE[weight.dtype] * (1 + expected.abs().max())
    return packed if bool(((product - expected).abs() <= allowed).all()) else None
