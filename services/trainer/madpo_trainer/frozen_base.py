"""The frozen base under adapters, as it lies in memory: in four bits, or in the precision that it is computed in."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from madpo.jobs.training import TrainingParameters
from madpo.models.scores import inner_model
from madpo_trainer.blocks import transformer_blocks
from madpo_trainer.quantized_base import quantize_base

_LINEAR = (nn.Linear, Conv1D)


def settle_base(model: Any, parameters: TrainingParameters, device: torch.device) -> None:
    """Make the base of a model with adapters as small as the job lets it be; nothing of one that is trained whole.

    Args:
        model: On the CPU, or this rank's part of it.
        parameters: Of the job; precision must be settled.
        device: Where the model will be.

    Raises:
        FailedPreconditionError: bitsandbytes is asked for and is not installed.
    """
    if parameters.lora is None:
        return
    if parameters.lora.quantize_base:
        quantize_base(model, parameters, device)
    if parameters.precision == "bf16":
        halve_base(model)


def halve_base(model: Any) -> None:
    """Keep in bf16 what autocast rounds to it for each product: frozen linear layers of the blocks, and the head.

    No result changes by it. Embeddings, and a head that is one tensor with them, stay in float32, where the sum over
    the blocks begins; so do norms, and experts in a stack.
    """
    inner = inner_model(model)
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    linear = [each for block in transformer_blocks(model) for each in block.modules() if type(each) in _LINEAR]
    if type(head) is nn.Linear and head.weight is not embeddings.weight and head.bias is None:
        linear.append(head)
    for module in linear:
        if not any(each.requires_grad for each in module.parameters(recurse=False)):
            module.to(torch.bfloat16)
