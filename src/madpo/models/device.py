"""What is computed on, and in which precision: the GPU that a service was given, never the CPU in its place unasked."""

import os
from typing import Literal

import torch

from madpo.config import ComputeSettings
from madpo.errors import FailedPreconditionError

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def precision_on(device: torch.device, asked: Literal["auto", "fp32", "bf16"]) -> Precision:
    """The precision that is meant: `auto` is bf16 on GPUs that compute in it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def use_tensor_cores() -> None:
    """Let products of float32 matrices on a GPU be computed in TF32: eight times as fast, to 10 bits of each factor."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def require_device(settings: ComputeSettings) -> None:
    """See that this process computes on what its settings say; before anything is put on a GPU.

    Raises:
        FailedPreconditionError: A GPU is asked for, and torch sees none; says what to do.
    """
    if settings.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif settings.device == "cuda" and not torch.cuda.is_available():
        build = "" if torch.version.cuda or torch.version.hip else f" (torch {torch.__version__} is built without CUDA)"
        variable = settings.variable("device")
        raise FailedPreconditionError(
            f"no GPU is visible{build}, and {variable}=cuda: give the container its GPUs (`madpo doctor --inside` "
            f"looks closer), or set {variable}=cpu to compute on the CPU"
        )


def sees_gpu() -> bool:
    """Whether there is a GPU. Its driver may be in use once that is asked, and no forked process could use it then."""
    return torch.cuda.device_count() > 0


def bound_gpu_memory(settings: ComputeSettings, device: int = 0) -> None:
    """Keep this process to its share of a GPU's memory; nothing is done where there is no GPU, or no bound.

    Args:
        settings: Of the service.
        device: Number of the GPU among those that the process sees.
    """
    if settings.gpu_memory_fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_fraction, device)
