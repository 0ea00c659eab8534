"""A base in four bits under adapters (QLoRA, arXiv:2305.14314): bitsandbytes' NF4 in the place of the linear layers.

Quantized are the frozen linear layers of the transformer blocks; embeddings, norms and head stay as they are. Adapters
are plain ones: whoever loads them puts them on the base as it is stored.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from madpo.jobs.training import TrainingParameters
from madpo_trainer.adam import require_bitsandbytes
from madpo_trainer.blocks import transformer_blocks

ASKED = "training.lora.quantize_base: nf4"


def quantize_base(model: Any, parameters: TrainingParameters, device: torch.device) -> None:
    """Put the frozen linear layers of the blocks into four bits, one by one on the device.

    Args:
        model: With adapters, on the CPU.
        parameters: Of the job, whose precision the layers compute in.
        device: Where the model will be.

    Raises:
        FailedPreconditionError: bitsandbytes is not installed.
    """
    layers = require_bitsandbytes(ASKED).nn
    dtype = torch.bfloat16 if parameters.precision == "bf16" else torch.float32
    for block in transformer_blocks(model):
        for name, linear in list(block.named_modules()):
            if type(linear) is nn.Linear and not linear.weight.requires_grad:
                small = layers.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    device="meta",
                )
                small.weight = layers.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
                small.bias = linear.bias
                # It would lay weights out anew in the midst of an evaluation on a CPU, which not all shapes allow.
                small.support_avx512bf16_for_cpu = False
                block.set_submodule(name, small.to(device))


def base_weight(layer: LoraLayer) -> Tensor:
    """The weight that an adapter goes on, as it is computed with."""
    parameter: Tensor = layer.get_base_layer().weight
    state = _state(parameter)
    if state is None:
        return parameter.detach()
    whole: Tensor = require_bitsandbytes(ASKED).functional.dequantize_4bit(parameter.detach(), state)
    return whole


def numbers(parameter: Tensor) -> int:
    """How many a parameter stands for; four bits are two in a byte."""
    state = _state(parameter)
    return parameter.numel() if state is None else int(state.shape.numel())


def _state(parameter: Tensor) -> Any:
    return getattr(parameter, "quant_state", None)
