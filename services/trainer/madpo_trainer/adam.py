"""The forms of AdamW: what is remembered of each weight in float32, in eight bits, or on the host."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from madpo.errors import FailedPreconditionError
from madpo.jobs.training import OptimizerParameters, TrainingParameters

SLICE = 1 << 26
"""Numbers of a parameter whose moments are on the GPU at one time, where they are kept on the host: 256 MiB of each."""
_LEAST_IN_8_BITS = 4096
"""Smaller tensors are remembered in float32, as are embeddings, whose gradients differ most in size."""
_BLOCK = 256
"""Numbers in eight bits that share a scale."""


def make_adam(model: nn.Module, groups: Iterable[dict[str, Any]], parameters: OptimizerParameters) -> Any:
    """An optimizer that has taken the memory for what it remembers."""
    options: dict[str, Any] = {
        "lr": parameters.learning_rate,
        "betas": (parameters.beta1, parameters.beta2),
        "eps": parameters.eps,
    }
    if parameters.name == "adamw_8bit":
        return _in_8_bits(model, groups, options)
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
    moments = {name: torch.zeros(parameter.shape, pin_memory=pinned) for name in ("exp_avg", "exp_avg_sq")}
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
        weights, gradients = (tensor.reshape(-1) for tensor in (parameter.detach(), gradient))
        assert weights.data_ptr() == parameter.data_ptr(), "weights lie in one piece"
        on_host = [state[name].view(-1) for name in ("exp_avg", "exp_avg_sq")]
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


def _in_8_bits(model: nn.Module, groups: Iterable[dict[str, Any]], options: dict[str, Any]) -> Any:
    bitsandbytes = require_bitsandbytes("training.optimizer.name: adamw_8bit")
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # it is one for all optimizers of a process, and may know of another's
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    adam = bitsandbytes.optim.AdamW8bit(list(groups), min_8bit_size=_LEAST_IN_8_BITS, **options)
    adam.check_overrides()
    adam.initialized = True
    for number, group in enumerate(adam.param_groups):
        for place, parameter in enumerate(group["params"]):
            adam.init_state(group, parameter, number, place)
    return adam


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
    """What is remembered of each trained parameter, wherever it lies, by the parameter's id."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}

    def size(parameter: Tensor) -> int:
        numbers = parameter.numel()
        if parameters.name == "adamw" or id(parameter) in embeddings or numbers < _LEAST_IN_8_BITS:
            return 8 * numbers
        return 2 * numbers + 8 * -(-numbers // _BLOCK)

    return {id(each): size(each) for each in model.parameters() if each.requires_grad}


def visiting_bytes(parameters: Iterable[Tensor]) -> int:
    """Of moments on the host the most that is on the GPU at one time."""
    return 8 * min(SLICE, max((parameter.numel() for parameter in parameters), default=0))
