"""AdamW over what is trained: which weights decay, at which rate a step is taken, and its state as files."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import OptimizerParameters
from madpo.models.memory import is_out_of_memory
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
        self._adam = torch.optim.AdamW(
            list(_groups(model, parameters.weight_decay)),
            lr=parameters.learning_rate,
            betas=(parameters.beta1, parameters.beta2),
            eps=parameters.eps,
            # One pass over memory: nine times less CPU than one operation after the other.
            fused=True,
        )
        self._allocate()

    def _allocate(self) -> None:
        """Take the memory of the moments now, as AdamW would in its first step, where a lack of it costs a step.

        Raises:
            FailedPreconditionError: There is not enough.
        """
        try:
            for parameter in self.trainable:
                self._adam.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    # Written, not only asked for: a system may promise more memory than it has.
                    "exp_avg": torch.empty_like(parameter, memory_format=torch.preserve_format).zero_(),
                    "exp_avg_sq": torch.empty_like(parameter, memory_format=torch.preserve_format).zero_(),
                }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            gib = 2 * sum(parameter.nbytes for parameter in self.trainable) / 2**30
            raise FailedPreconditionError(
                f"memory is short of what AdamW remembers, {gib:.1f} GiB over all ranks beside the weights "
                "(use lora, or sharding over more GPUs)"
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
            (f"{name}/{slot}", value.detach())
            for name, parameter in trainable_parameters(self._model)
            for slot, value in self._adam.state.get(parameter, {}).items()
        )
        # A copy: the optimizer goes on in place.
        return {name: tensor.cpu().contiguous().clone() for name, tensor in gathered(named, keep=keep)}

    def restore(self, directory: Path) -> None:
        """Put what a checkpoint remembers back under its parameters."""
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(directory / "optimizer.safetensors").items():
            name, _, slot = key.rpartition("/")
            by_parameter.setdefault(name, {})[slot] = tensor
        for name, parameter in trainable_parameters(self._model):
            if name in by_parameter:
                self._adam.state[parameter] = {
                    # The fused optimizer counts steps on the parameter's device.
                    slot: tensor.to(parameter.device) if slot == "step" else part_like(tensor, parameter)
                    for slot, tensor in by_parameter[name].items()
                }


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
