"""A model's transformer blocks: what is checkpointed, compiled and sharded one by one."""

import shutil
from typing import Any

from torch import nn

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import TrainingParameters
from madpo.models.scores import inner_model

_COMPILERS = ("c++", "g++", "clang++")


def transformer_blocks(model: Any) -> list[nn.Module]:
    """The blocks of a transformers model, with or without adapters.

    Raises:
        InvalidArgumentError: The architecture does not say which modules they are.
    """
    inner = inner_model(model)
    names = set(inner._no_split_modules or ())
    # torch calls the class of a sharded module by another name.
    blocks = [module for module in inner.base_model.modules() if type(module).__name__.removeprefix("FSDP") in names]
    if not blocks:
        raise InvalidArgumentError(
            f"{type(inner).__name__} does not say which of its modules are transformer blocks, so it can be neither "
            "sharded nor compiled (leave out training.sharding and training.compile)"
        )
    return blocks


def prepare_blocks(model: Any, parameters: TrainingParameters) -> None:
    """Switch on activation checkpointing and compilation, where the job asks for them.

    Raises:
        InvalidArgumentError: The model cannot do it, or there is no compiler here.
    """
    if parameters.activation_checkpointing:
        if not can_recompute(model):
            raise InvalidArgumentError(
                f"{type(inner_model(model)).__name__} cannot recompute activations (leave out "
                "training.activation_checkpointing)"
            )
        recompute_blocks(model)
    if parameters.compile:
        if not any(map(shutil.which, _COMPILERS)):
            raise InvalidArgumentError(
                f"training.compile needs a C++ compiler where the trainer runs, and none of {', '.join(_COMPILERS)} is "
                "there (the container images have none; leave training.compile out)"
            )
        for block in transformer_blocks(model):
            block.compile(dynamic=True)


def can_recompute(model: Any) -> bool:
    """Whether the model's code can compute its blocks again in the backward pass."""
    return bool(getattr(inner_model(model), "supports_gradient_checkpointing", False))


def recompute_blocks(model: Any) -> None:
    """Keep only the inputs of blocks from now on."""
    inner_model(model).activation_checkpointing_enable({"use_reentrant": False})
