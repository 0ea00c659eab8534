"""The forms of AdamW: what is remembered of each weight in float32, in eight bits, or on the host."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import OptimizerParameters, TrainingParameters
from madpo_trainer.sharding import local, part_of

SLICE = 1 << 26
"""Numbers of a parameter whose moments are on the GPU at one time, where they are kept on the host: 256 MiB of each."""
_LEAST_IN_8_BITS = 4096
"""Smaller tensors are remembered in float32."""
_BLOCK = 256
"""Numbers in eight bits that share a scale. Weights whose rows are no multiple of it are remembered in float32."""


def make_adam(model: nn.Module, groups: Iterable[dict[str, Any]], parameters: OptimizerParameters) -> Any:
    """An optimizer that has taken the memory for what it remembers."""
    options: dict[str, Any] = {
        "lr": parameters.learning_rate,
        "betas": (parameters.beta1, parameters.beta2),
        "eps": parameters.eps,
    }
    if parameters.name == "adamw_8bit":
        return AdamWIn8Bits(model, groups, options)
    # One pass over memory: nine times less CPU than one operation after the other.
    kind = HostAdamW if parameters.offload else torch.optim.AdamW
    adam = kind(list(groups), fused=True, **options)
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = _remembered(parameter, on_host=parameters.offload)
    return adam


def _remembered(parameter: Tensor, *, on_host: bool) -> dict[str, Tensor]:
    """As AdamW would take it in its first step, where a lack of memory costs a step."""
    if not on_host:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            # Written, not only asked for: a system may promise more memory than it has.
            "exp_avg": torch.empty_like(parameter, memory_format=torch.preserve_format).zero_(),
            "exp_avg_sq": torch.empty_like(parameter, memory_format=torch.preserve_format).zero_(),
        }
    pinned = parameter.device.type == "cuda"
    names = ("exp_avg", "exp_avg_sq")  # of a sharded weight sharded as well
    moments = {name: torch.zeros_like(parameter.detach(), device="cpu", pin_memory=pinned) for name in names}
    return {"step": torch.zeros(()), **moments}


class HostAdamW(torch.optim.AdamW):
    """AdamW whose moments lie in the host's memory, and visit the device of their weights piece by piece."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """As of AdamW, to the same bits."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, parameter.grad, group)
        if torch.cuda.is_available():  # the host's copies are read next time
            torch.cuda.synchronize()

    def _step_of(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, device = self.state[parameter], parameter.device
        mine = local(parameter.detach())
        weights, gradients = mine.reshape(-1), local(gradient).reshape(-1)
        assert weights.data_ptr() == mine.data_ptr(), "weights lie in one piece"
        on_host = [local(state[name]).view(-1) for name in ("exp_avg", "exp_avg_sq")]
        for start in range(0, len(weights), SLICE):
            piece = slice(start, start + SLICE)
            first, second = (moment[piece].to(device, non_blocking=True, copy=True) for moment in on_host)
            adamw(
                [weights[piece]],
                [gradients[piece]],
                [first],
                [second],
                [],
                [state["step"].to(device, copy=True)],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
            )
            for moment, moved in zip(on_host, (first, second), strict=True):
                moment[piece].copy_(moved, non_blocking=True)
        state["step"] += 1


class AdamWIn8Bits:
    """bitsandbytes' AdamW, of a sharded model over what this rank has of each weight.

    Ranks have whole rows, and blocks in eight bits lie within rows, so that each is one of the whole weight: what is
    remembered does not depend on the number of ranks.

    Args:
        model: What is trained of it is in the groups.
        groups: Parameters, and how they decay.
        options: For bitsandbytes.

    Attributes:
        state: What is remembered by parameter, sharded as that is; scales by row.
    """

    def __init__(self, model: nn.Module, groups: Iterable[dict[str, Any]], options: dict[str, Any]) -> None:
        bitsandbytes = require_bitsandbytes("training.optimizer.name: adamw_8bit")
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        manager.initialize()  # it is one for all optimizers of a process, and may know of another's
        groups, embeddings = list(groups), _embeddings(model)
        self._parts = {each: nn.Parameter(local(each.detach())) for group in groups for each in group["params"]}
        for parameter, part in self._parts.items():
            is_small = id(parameter) in embeddings or not _goes_in_8_bits(parameter)
            manager.override_config(part, "optim_bits", 32 if is_small else 8)
        parts = [{**group, "params": [self._parts[each] for each in group["params"]]} for group in groups]
        self._adam = bitsandbytes.optim.AdamW8bit(parts, min_8bit_size=0, **options)
        self._adam.initialized = True
        self.param_groups = self._adam.param_groups
        for number, group in enumerate(self.param_groups):
            for place, part in enumerate(group["params"]):
                self._adam.init_state(group, part, number, place)
        self.state = {each: self._remembered(each, self._adam.state[part]) for each, part in self._parts.items()}

    def step(self) -> None:
        """Move the weights."""
        for parameter, part in self._parts.items():
            if parameter.grad is None:
                continue
            steps = self.state[parameter]["step"]
            self._adam.state[part]["step"] = int(steps)  # one more than that is taken
            steps += 1
            part.data = local(parameter.detach())
            # A rank may have no row of a weight.
            part.grad = local(parameter.grad) if part.numel() else None
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Forget gradients."""
        assert set_to_none
        for parameter in self._parts:
            parameter.grad = None

    def _remembered(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Tensor]:
        """Of one parameter, in the memory that bitsandbytes writes."""
        found = {"step": torch.zeros((), dtype=torch.int64)}
        for slot, value in state.items():
            if slot.startswith("absmax"):
                value = value.view(len(self._parts[parameter]), parameter.shape[1:].numel() // _BLOCK)
            if slot.startswith(("state", "absmax")) and isinstance(parameter, DTensor):
                value = part_of(value, parameter)
            if slot != "step":
                found[slot] = value
        return found


def _embeddings(model: nn.Module) -> set[int]:
    """Ids of their weights, which stay in float32: their gradients differ most in size."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def _goes_in_8_bits(parameter: Tensor) -> bool:
    return parameter.numel() >= _LEAST_IN_8_BITS and parameter.shape[1:].numel() % _BLOCK == 0


def require_libraries(parameters: TrainingParameters) -> None:
    """See that what a job asks for is installed, before anything is loaded.

    Raises:
        FailedPreconditionError: It is not; says what to install.
    """
    if parameters.optimizer.name == "adamw_8bit":
        require_bitsandbytes("training.optimizer.name: adamw_8bit")
    if parameters.lora is not None and parameters.lora.quantize_base:
        require_bitsandbytes("training.lora.quantize_base: nf4")


def require_bitsandbytes(asked: str) -> Any:
    """The library, for what of the job asks for it.

    Raises:
        FailedPreconditionError: It is not installed here.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise FailedPreconditionError(
            f"{asked} needs bitsandbytes where the trainer runs: pip install 'madpo[gpu]' there, or leave it out "
            f"({error})"
        ) from error
    return bitsandbytes


def remembered_bytes(model: nn.Module, parameters: OptimizerParameters) -> dict[int, int]:
    """What is remembered of each trained parameter, wherever it lies and on all ranks, by the parameter's id."""
    embeddings = _embeddings(model)

    def size(parameter: Tensor) -> int:
        numbers = parameter.numel()
        if parameters.name == "adamw" or id(parameter) in embeddings or not _goes_in_8_bits(parameter):
            return 8 * numbers
        return 2 * numbers + 8 * (numbers // _BLOCK)

    return {id(each): size(each) for each in model.parameters() if each.requires_grad}


def most_visiting(numbers: Iterable[int]) -> int:
    """Bytes of moments on the host that are on the GPU at one time, by the numbers of each parameter on it."""
    return 8 * min(SLICE, max(numbers, default=0))
