"""What a supervisor starts for one attempt (by `madpo.worker.program`): the rank of this host, or torchrun.

Decided here, because only torch knows how many GPUs there are, and supervisors do without torch.
"""

from pathlib import Path

import torch

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError
from madpo.imports import lasting
from madpo.models.device import require_device
from madpo_trainer.settings import ONE_RANK, TrainerSettings


def main(workspace: Path) -> int:
    """Take part in an attempt to its end; the exit code is 0 when no rank of this host failed."""
    settings = load_settings(TrainerSettings)
    require_device(settings)
    ranks = ranks_of_host(settings, gpus=torch.cuda.device_count())
    if settings.nnodes == ranks == 1:
        with lasting():
            from madpo_trainer.run import main as run
        run(workspace, ONE_RANK)
    from madpo_trainer import torchrun

    return torchrun.main(workspace, settings, ranks=ranks)


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
