"""A base in four bits as a plan sees it: layers without numbers that take what bitsandbytes' NF4 takes."""

from typing import Any

import torch
from torch import Tensor, nn

from madpo.jobs.training import TrainingParameters
from madpo_trainer.blocks import transformer_blocks

_BLOCK = 64
"""Weights that share a scale, a float32."""


class FourBits(nn.Module):
    """In the place of a frozen linear layer: half a byte a weight with scales, and all of it in float32 for a product.

    Args:
        linear: On no device.
        dtype: That is computed in.

    Attributes:
        whole_bytes: Of the layer's weight before it was put into four bits.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.whole_bytes, self._dtype = linear.weight.nbytes, dtype
        count = linear.weight.numel()
        halves = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(halves, requires_grad=False)
        self.scales = nn.Parameter(torch.empty(-(-count // _BLOCK), device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """A product with a weight of that shape."""
        shape = (self.out_features, self.in_features)
        product: Tensor = _Product.apply(states.to(self._dtype), shape)  # type: ignore[no-untyped-call]
        return (product if self.bias is None else product + self.bias.to(self._dtype)).to(states.dtype)


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass: the weight is made whole again, and is frozen."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return nn.functional.linear(states, states.new_empty(shape, dtype=torch.float32).to(states.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ grad.new_empty(ctx.shape, dtype=torch.float32).to(grad.dtype), None


def plan_four_bits(model: Any, parameters: TrainingParameters) -> None:
    """As `quantize_base`, of a model without numbers."""
    dtype = torch.bfloat16 if parameters.precision == "bf16" else torch.float32
    for block in transformer_blocks(model):
        for name, linear in list(block.named_modules()):
            if type(linear) is nn.Linear and not linear.weight.requires_grad:
                block.set_submodule(name, FourBits(linear, dtype))


def loaded_more(model: nn.Module) -> int:
    """Bytes that the layers take more than now while the model is loaded."""
    layers = [module for module in model.modules() if isinstance(module, FourBits)]
    return sum(each.whole_bytes - each.weight.nbytes - each.scales.nbytes for each in layers)
