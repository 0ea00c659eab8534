"""`python -m madpo_trainer.launch WORKSPACE`: torchrun, as a supervisor starts it for one attempt.

Also one process runs under torchrun: a crash or an out-of-memory kills the run and never the supervisor. This is a
process of its own because torchrun would outlive a supervisor that is killed, and keep the port at which ranks meet;
and because only torch knows how many GPUs there are, and supervisors do without torch.
"""

import sys
from pathlib import Path

import torch
from torch.distributed import run as torchrun

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError
from madpo.worker.workspace import watch_lifeline
from madpo_trainer.settings import TrainerSettings


def main(workspace: Path) -> None:
    """Run the ranks of this host to their end; exits with torchrun's code."""
    watch_lifeline(workspace)
    arguments = torchrun_arguments(load_settings(TrainerSettings), gpus=torch.cuda.device_count())
    # Its logs would else stay in the temporary folder, which is memory in a container.
    logs = ["--log-dir", str(workspace / "torchrun")]
    torchrun.main([*arguments, *logs, "-m", "madpo_trainer.run", str(workspace)])


def torchrun_arguments(settings: TrainerSettings, *, gpus: int) -> list[str]:
    """How torchrun starts the ranks of this host and finds those of the others.

    Several hosts meet at a fixed address, so that rank 0 is always on the host that holds the job.

    Raises:
        FailedPreconditionError: A rank per GPU is asked for where there is none.
    """
    processes = ["--nproc-per-node", str(_processes(settings, gpus))]
    if settings.nnodes == 1:
        return ["--standalone", *processes]
    return [
        *processes,
        *("--nnodes", str(settings.nnodes)),
        *("--node-rank", str(settings.node_rank)),
        *("--master-addr", str(settings.master_addr)),
        *("--master-port", str(settings.master_port)),
        *("--rdzv-conf", f"timeout={round(settings.join_timeout_s)}"),
    ]


def _processes(settings: TrainerSettings, gpus: int) -> int:
    if isinstance(settings.nproc_per_node, int):
        return settings.nproc_per_node
    if settings.nproc_per_node == "gpu" and gpus == 0:
        raise FailedPreconditionError(
            "MADPO_TRAINER_NPROC_PER_NODE=gpu, but no GPU is visible (give the container its GPUs, or use auto)"
        )
    return max(1, gpus)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
