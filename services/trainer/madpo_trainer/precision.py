"""The precision that a step is computed in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from madpo.jobs.training import TrainingParameters


def training_autocast(device_type: str, parameters: TrainingParameters) -> AbstractContextManager[Any]:
    """What forward passes with gradient run under; precision must be settled.

    Without recomputation autograd keeps the bf16 copy of each weight for the backward pass anyway. Where blocks are
    computed again nobody needs it, and autocast's own store of them would hold two bytes a weight for nothing.
    """
    if parameters.precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=torch.bfloat16, cache_enabled=not parameters.activation_checkpointing)
