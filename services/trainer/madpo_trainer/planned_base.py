"""A base in four bits as a plan sees it: layers without numbers that take what bitsandbytes' NF4 takes."""

from typing import Any

import torch
from torch import Tensor, nn

from madpo.jobs.training import TrainingParameters
from madpo_trainer.blocks import transformer_blocks
from madpo_trainer.quantized_base import BLOCK

_BYTES: dict[str, Any] = {"dtype": torch.uint8, "device": "meta"}


class FourBits(nn.Module):
    """In the place of a frozen linear layer: half a byte a weight with scales, and all of it for a product.

    Args:
        linear: On no device.
        dtype: That is computed in.

    Attributes:
        beside: Numbers of the weight beyond the bytes that stand for them.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype = dtype
        blocks = linear.out_features * -(-linear.in_features // BLOCK)
        numbers = torch.empty(linear.out_features, blocks // linear.out_features * BLOCK // 2, **_BYTES)
        scales = torch.empty(linear.out_features, blocks // linear.out_features * 4, **_BYTES)
        self.weight, self.scales = (nn.Parameter(each, requires_grad=False) for each in (numbers, scales))
        self.beside = linear.weight.numel() - numbers.numel() - scales.numel()
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """A product with a weight of that shape."""
        shape = (self.out_features, self.in_features)
        product: Tensor = _Product.apply(states.to(self._dtype), shape)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(self._dtype)


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass: the weight is made whole again, and is frozen."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return nn.functional.linear(states, states.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ grad.new_empty(ctx.shape), None


def plan_four_bits(model: Any, parameters: TrainingParameters) -> None:
    """As `quantize_base`, of a model without numbers."""
    dtype = torch.bfloat16 if parameters.precision == "bf16" else torch.float32
    for block in transformer_blocks(model):
        for name, linear in list(block.named_modules()):
            if type(linear) is nn.Linear and not linear.weight.requires_grad:
                block.set_submodule(name, FourBits(linear, dtype))


def loaded_numbers(model: nn.Module) -> int:
    """How many numbers a model has without adapters, in float32 while it is loaded."""
    here = sum(each.numel() for name, each in model.named_parameters() if "lora_" not in name)
    return here + sum(module.beside for module in model.modules() if isinstance(module, FourBits))
