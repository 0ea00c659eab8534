"""What is computed on: the GPU that a service was given, and never the CPU in its place unasked."""

import os

import torch

from madpo.config import ComputeSettings
from madpo.errors import FailedPreconditionError


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
