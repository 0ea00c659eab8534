"""AdamW over what is trained: which weights decay, at which rate a step is taken, and its state as files."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import OptimizerParameters
from madpo.models.memory import is_out_of_memory
from madpo_trainer.adam import make_adam, remembered_bytes
from madpo_trainer.learning_rate import learning_rate
from madpo_trainer.sharding import by_layout, clip_grad_norm, local, read_part


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

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered from step to step, as `{parameter}/{exp_avg|exp_avg_sq|step}`, sharded like parameters."""
        named = {
            f"{name}/{slot}": value.detach()
            for name, parameter in trainable_parameters(self._model)
            for slot, value in self._adam.state.get(parameter, {}).items()
        }
        # What is in eight bits shares small tables; files hold one for each.
        owners = {tensor.data_ptr(): name for name, tensor in named.items() if not isinstance(tensor, DTensor)}
        return {
            name: tensor if isinstance(tensor, DTensor) or owners[tensor.data_ptr()] == name else tensor.clone()
            for name, tensor in named.items()
        }

    def restore(self, directory: Path) -> None:
        """Put what a checkpoint remembers back under its parameters; each rank reads its part.

        Raises:
            FailedPreconditionError: Another form of AdamW left it.
        """
        with ExitStack() as stack:
            stored: dict[str, dict[str, Any]] = {}
            for path in sorted(directory.glob("optimizer*.safetensors")):
                file = stack.enter_context(safe_open(path, framework="pt"))
                for key in file.keys():  # noqa: SIM118 - no mapping
                    name, _, slot = key.rpartition("/")
                    stored.setdefault(name, {})[slot] = file
            for name, parameter in trainable_parameters(self._model):
                if name in stored:
                    self._restore_one(name, parameter, stored[name])

    def _restore_one(self, name: str, parameter: nn.Parameter, files: dict[str, Any]) -> None:
        state = self._adam.state[parameter]
        if files.keys() != state.keys():
            raise FailedPreconditionError(
                f"the checkpoint remembers of {name} {', '.join(sorted(files))}, which is not of "
                f"{self._parameters.name}"
            )
        for slot, value in state.items():
            file, key = files[slot], f"{name}/{slot}"
            is_sharded = isinstance(value, DTensor)
            local(value).copy_(read_part(file, key, value) if is_sharded else file.get_tensor(key))


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
