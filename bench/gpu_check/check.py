"""A check, and what it is run with; each runs in a process of its own, so that a crash costs one line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.models import Size

Figures = Mapping[str, Any]


class CheckFailed(Exception):  # noqa: N818 - an outcome, not a defect of the check
    """What was seen is not what must be; the figures say what."""

    def __init__(self, reason: str, figures: Figures) -> None:
        super().__init__(reason)
        self.figures = figures


class Skipped(Exception):  # noqa: N818
    """It cannot be run here; says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where checks run, and how large they are."""

    device: torch.device
    size: Size
    """Of the model that is trained, scored and sampled."""
    steps: int
    batch: int
    """Pairs of a step."""
    shape: str
    """Of the pairs, see `bench.lengths.SHAPES`."""
    matmul: int
    """Rows and columns of the product that tells the device's peak."""

    @property
    def is_cuda(self) -> bool:
        """Whether a GPU is looked at, or the checks themselves on a CPU."""
        return self.device.type == "cuda"

    @classmethod
    def of(cls, name: str) -> "Setting":
        """`full`, `quick` (a model of a tenth) or `cpu` (all small)."""
        match name:
            case "full":
                # 1.24 billion weights with tied embeddings: Llama 3.2 1B.
                return cls(torch.device("cuda"), Size(16, 2048, 8192, 32, 8, 128_256), 8, 16, "384/128", 8192)
            case "quick":
                return cls(torch.device("cuda"), Size(8, 768, 3072, 12, 4, 32_000), 4, 8, "128/128", 8192)
            case "cpu":
                return cls(torch.device("cpu"), Size(2, 64, 128, 4, 2, 512), 2, 4, "128/128", 256)
        raise ValueError(name)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    run: Callable[[Setting], Figures]
    """Its figures. Raises CheckFailed, and Skipped."""
    limit_s: float = 120.0
    """On a GPU; it is stopped after that."""


def require(holds: bool, reason: str, figures: Figures) -> None:
    """Raises CheckFailed."""
    if not holds:
        raise CheckFailed(reason, figures)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is expected, in float64."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def peak_gib(device: torch.device) -> float | None:
    """The most memory that torch held on a GPU since `forget_peak`."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
