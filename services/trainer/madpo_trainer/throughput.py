"""How fast a training goes, as others say it: tokens per second, share of what the card can compute, memory at most."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from madpo.errors import InvalidArgumentError
from madpo.models.scores import inner_model
from madpo_trainer.blocks import transformer_blocks
from madpo_trainer.ranks import Ranks

_BF16_TERAFLOPS: Mapping[str, float] = {
    "B200": 2250,
    "H200": 989,
    "H100 80GB HBM3": 989,
    "H100 PCIe": 756,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "RTX 6000 Ada": 364,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Of dense products with sums in float32, by a part of the card's name, from the makers' data sheets; TF32 has half."""


class Throughput:
    """Measures the steps of a run.

    Args:
        model: That is trained, in its place.
        precision: That it is computed in.
        ranks: Who shares a step.
    """

    def __init__(self, model: nn.Module, *, precision: str, ranks: Ranks) -> None:
        self._device, self._ranks = next(model.parameters()).device, ranks
        self._flops, peak = flops_per_token(model), card_flops(self._device, precision)
        self._peak = None if peak is None else peak * ranks.size

    def start(self) -> None:
        """Forget how much memory was taken before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def figures(self, *, tokens: float, seconds: float) -> dict[str, float]:
        """Of a step, or of many: tokens of all ranks per second, and where the card is known the share of its peak."""
        found = {"tokens_per_s": tokens / seconds}
        if self._flops is not None and self._peak is not None:
            found["flop_share"] = self._flops * tokens / seconds / self._peak
        return found

    def peak_memory_gib(self) -> float:
        """The most that was taken: of this rank's card since `start`; on a CPU by this process, ever."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device)) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    def summary(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """For the record of the job, of all its attempts but for memory; all ranks must call."""
        is_cuda = self._device.type == "cuda"
        found: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self._device) if is_cuda else "cpu",
            "peak_memory_gib": round(max(self._ranks.gather(self.peak_memory_gib())), 3),
        }
        tokens, seconds = counters.get("tokens", 0.0), counters.get("step_s", 0.0)
        return found | (self.figures(tokens=tokens, seconds=seconds) if tokens and seconds else {})


def flops_per_token(model: nn.Module) -> int | None:
    """Operations of a step by token: 2 a weight forward, 2 back, 2 for the gradient of one that is trained.

    Counted are the linear layers of the blocks, not the head, which runs for some tokens only, attention's scores, nor
    what is computed again. None for a mixture of experts, whose tokens use some of the weights.
    """
    if not isinstance(inner_model(model), PreTrainedModel):
        return None
    try:
        blocks = transformer_blocks(model)
    except InvalidArgumentError:
        return None
    if any(weight.dim() > 2 for block in blocks for name, weight in block.named_parameters() if "conv" not in name):
        return None
    layers = [module for block in blocks for module in block.modules() if isinstance(module, (nn.Linear, Conv1D))]
    return sum(_size(layer) * (6 if layer.weight.requires_grad else 4) for layer in layers)


def _size(layer: Any) -> int:
    """Numbers of a matrix, however they are stored."""
    return int(layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else layer.weight.numel())


def card_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second of a card at its best; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [teraflops for part, teraflops in _BF16_TERAFLOPS.items() if part in name]
    if not known:
        return None
    return known[0] * 1e12 / (1 if precision == "bf16" else 2)
