"""A base in four bits under adapters (QLoRA, arXiv:2305.14314): bitsandbytes' NF4 in the place of the linear layers.

Quantized are the frozen linear layers of the transformer blocks; embeddings, norms and head stay as they are. Adapters
are plain ones: whoever loads them puts them on the base as it is stored. Numbers that share a scale lie in one row of a
weight, so that ranks which split its rows have it in the same four bits.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from madpo.jobs.training import TrainingParameters
from madpo_trainer.adam import require_bitsandbytes
from madpo_trainer.blocks import transformer_blocks
from madpo_trainer.sharding import local, part_of

ASKED = "training.lora.quantize_base: nf4"
BLOCK = 64
"""Numbers that share a scale, a float32. Rows of a weight are filled up to a multiple of it."""


class FourBitLinear(nn.Module):
    """A frozen linear layer whose weight is made whole for each product, forward and back.

    Args:
        linear: The layer; its weight may be this rank's part.
        dtype: That is computed in, and that comes out.
        device: Where to.

    Attributes:
        weight: Two numbers in a byte, [out, in / 2], split over ranks as the layer's.
        scales: The bytes of float32, [out, in / 16], which no precision of gathered weights changes.
        in_features: Columns of the weight.
        out_features: Its rows, of all ranks together.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features, self._dtype = linear.in_features, linear.out_features, dtype
        numbers, scales = _quantized(local(linear.weight.detach()).to(device))
        if isinstance(linear.weight, DTensor):
            numbers, scales = (part_of(each, linear.weight) for each in (numbers, scales))
        self.weight, self.scales = (nn.Parameter(each, requires_grad=False) for each in (numbers, scales))
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """`states` [..., in] times the weight, [..., out]."""
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            states.to(self._dtype), self.weight, self.scales, self.in_features
        )
        return product if self.bias is None else product + self.bias.to(self._dtype)

    def whole_weight(self) -> Tensor:
        """What the four bits stand for, in float32, [out, in]; split as they are."""
        found = _whole(local(self.weight), local(self.scales), self.in_features, torch.float32)
        return part_of(found, self.weight) if isinstance(self.weight, DTensor) else found


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass but the four bits."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, scales: Tensor, columns: int) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.columns = columns
        return nn.functional.linear(states, _whole(weight, scales, columns, states.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scales = ctx.saved_tensors
        return grad @ _whole(weight, scales, ctx.columns, grad.dtype), None, None, None


def quantize_base(model: Any, parameters: TrainingParameters, device: torch.device) -> None:
    """Put the frozen linear layers of the blocks into four bits, one by one on the device.

    Args:
        model: With adapters, on the CPU; or this rank's part of it.
        parameters: Of the job, whose precision the layers compute in.
        device: Where the model will be.

    Raises:
        FailedPreconditionError: bitsandbytes is not installed.
    """
    dtype = torch.bfloat16 if parameters.precision == "bf16" else torch.float32
    for block in transformer_blocks(model):
        for name, linear in list(block.named_modules()):
            if type(linear) is nn.Linear and not linear.weight.requires_grad:
                block.set_submodule(name, FourBitLinear(linear, dtype, device))


def base_weight(layer: LoraLayer) -> Tensor:
    """The weight that an adapter goes on, as it is computed with; sharded where that is."""
    base: Any = layer.get_base_layer()
    weight: Tensor = base.whole_weight() if isinstance(base, FourBitLinear) else base.weight.detach()
    return weight


def numbers_beside(model: nn.Module) -> int:
    """How many numbers a model has more than its parameters have elements, by what four bits stand for."""
    return sum(
        each.in_features * each.out_features - each.weight.numel() - each.scales.numel()
        for each in model.modules()
        if isinstance(each, FourBitLinear)
    )


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    filled = nn.functional.pad(weight, (0, -columns % BLOCK)).contiguous()
    width = filled.shape[1]
    if not rows:  # of a rank that has none of it
        none = filled.to(torch.uint8)
        return none[:, : width // 2], none[:, : width // BLOCK * 4]
    functional = require_bitsandbytes(ASKED).functional
    numbers, state = functional.quantize_4bit(filled, blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
    return numbers.view(rows, width // 2), state.absmax.view(rows, width // BLOCK).view(torch.uint8)


def _whole(weight: Tensor, scales: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    shape = torch.Size([len(weight), 2 * weight.shape[1]])
    if not len(weight):
        return torch.empty(0, columns, dtype=dtype, device=weight.device)
    functional = require_bitsandbytes(ASKED).functional
    state = functional.QuantState(
        scales.view(torch.float32).flatten(), shape=shape, dtype=dtype, blocksize=BLOCK, quant_type="nf4"
    )
    whole: Tensor = functional.dequantize_4bit(weight.reshape(-1, 1), state)
    return whole[:, :columns]
