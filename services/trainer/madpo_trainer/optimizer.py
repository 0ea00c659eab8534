"""AdamW over what is trained: which weights decay, at which rate a step is taken, and its state as files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import OptimizerParameters
from madpo.models.memory import is_out_of_memory
from madpo_trainer.adam import make_adam, remembered_bytes
from madpo_trainer.learning_rate import learning_rate
from madpo_trainer.sharding import by_layout, clip_grad_norm, gathered, part_like


class Optimizer:
    """Takes the steps of a run.

    Args:
        model: Its parameters that take gradients are trained.
        parameters: Of the job.
        total_steps: Of the job, for the learning rate.
    """

    def __init__(self, model: nn.Module, parameters: OptimizerParameters, *, total_steps: int) -> None:
        self._model, self._parameters, self._total_steps = model, parameters, total_steps
        self.trainable = [parameter for _, parameter in trainable_parameters(model)]
        self._adam = self._make()

    def _make(self) -> Any:
        """Take the memory of the moments now, as AdamW would in its first step, where a lack of it costs a step.

        Raises:
            FailedPreconditionError: There is not enough.
        """
        try:
            return make_adam(self._model, _groups(self._model, self._parameters.weight_decay), self._parameters)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            gib = sum(remembered_bytes(self._model, self._parameters).values()) / 2**30
            raise FailedPreconditionError(
                f"memory is short of what AdamW remembers, {gib:.1f} GiB over all ranks beside the weights (use lora, "
                "training.optimizer.offload or name: adamw_8bit, or sharding over more GPUs)"
            ) from error

    def clip(self) -> Tensor:
        """Bring gradients to the job's largest norm; the norm before. All ranks must call."""
        return clip_grad_norm(by_layout(self.trainable), self._parameters.max_grad_norm)

    def step(self, step: int) -> float:
        """Move the weights in a step, from 0; the learning rate it was taken with."""
        rate = learning_rate(self._parameters, step, self._total_steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self.drop_gradients()
        return rate

    def drop_gradients(self) -> None:
        """Forget what was accumulated."""
        self._adam.zero_grad(set_to_none=True)

    def tensors(self, *, keep: bool = True) -> dict[str, Tensor]:
        """What is remembered from step to step, whole, on the CPU, as `{parameter}/{exp_avg|exp_avg_sq|step}`.

        All ranks must call where the model is sharded; those that do not `keep` get nothing.
        """
        named = (
            (f"{name}/{slot}", torch.as_tensor(value).detach())
            for name, parameter in trainable_parameters(self._model)
            for slot, value in self._adam.state.get(parameter, {}).items()
        )
        # A copy: the optimizer goes on in place.
        return {name: tensor.cpu().contiguous().clone() for name, tensor in gathered(named, keep=keep)}

    def restore(self, directory: Path) -> None:
        """Put what a checkpoint remembers back under its parameters.

        Raises:
            FailedPreconditionError: Another form of AdamW left it.
        """
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(directory / "optimizer.safetensors").items():
            name, _, slot = key.rpartition("/")
            by_parameter.setdefault(name, {})[slot] = tensor
        for name, parameter in trainable_parameters(self._model):
            if name in by_parameter:
                self._restore_one(name, parameter, by_parameter[name])

    def _restore_one(self, name: str, parameter: nn.Parameter, found: dict[str, Tensor]) -> None:
        state = self._adam.state[parameter]
        if found.keys() != state.keys():
            raise FailedPreconditionError(
                f"the checkpoint remembers of {name} {', '.join(sorted(found))}, which is not of "
                f"{self._parameters.name}"
            )
        for slot, value in state.items():
            if not isinstance(value, Tensor):  # bitsandbytes counts steps in Python
                state[slot] = int(found[slot])
            elif slot == "step":
                value.copy_(found[slot])
            elif isinstance(parameter, DTensor):
                state[slot] = part_like(found[slot], parameter)
            else:
                value.copy_(found[slot])


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that take gradients, in a stable order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for a parameter: matrices, embeddings among them, not vectors, norms or biases.

    A bias of many experts has two dimensions and is none the less one.

    Source: nanoGPT (`configure_optimizers`); the Trainer of transformers decays the same ones.
    """
    return parameter.dim() >= 2 and not name.endswith("bias")


def _groups(model: nn.Module, weight_decay: float) -> Iterator[dict[str, object]]:
    """Parameters by decay and layout: torch's fused loops take one sort of tensor at a time."""
    named = trainable_parameters(model)
    for decay, is_decayed in ((weight_decay, True), (0.0, False)):
        for group in by_layout(parameter for name, parameter in named if decays(name, parameter) is is_decayed):
            yield {"params": group, "weight_decay": decay}
