"""What a supervisor starts for one attempt (by `madpo.worker.program`): the rank of this host, or torchrun.

Decided here, because only torch knows how many GPUs there are, and supervisors do without torch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError
from madpo.models.device import require_device, sees_gpu
from madpo_trainer.settings import ONE_RANK, TrainerSettings


def prepare() -> None:
    """Import what will run here; there need be no job yet."""
    _program(load_settings(TrainerSettings))


def may_be_copied() -> bool:
    """Whether a copy of this process can do what it can."""
    return not sees_gpu()


def main(workspace: Path) -> int:
    """Take part in an attempt to its end; the exit code is 0 when no rank of this host failed."""
    return _program(load_settings(TrainerSettings))(workspace)


def _program(settings: TrainerSettings) -> Callable[[Path], int]:
    require_device(settings)
    ranks = ranks_of_host(settings, gpus=torch.cuda.device_count())
    if settings.nnodes == ranks == 1:
        from madpo_trainer import run

        return partial(run.main, place=ONE_RANK)
    from madpo_trainer import torchrun

    return partial(torchrun.main, settings=settings, ranks=ranks)


def ranks_of_host(settings: TrainerSettings, *, gpus: int) -> int:
    """How many ranks run here.

    Raises:
        FailedPreconditionError: A rank per GPU is asked for where there is none.
    """
    if isinstance(settings.nproc_per_node, int):
        return settings.nproc_per_node
    if settings.nproc_per_node == "gpu" and gpus == 0:
        raise FailedPreconditionError(
            "MADPO_TRAINER_NPROC_PER_NODE=gpu, but no GPU is visible (give the container its GPUs, or use auto)"
        )
    return max(1, gpus)
