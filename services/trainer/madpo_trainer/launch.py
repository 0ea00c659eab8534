"""Torchrun, as a supervisor starts it for one attempt (by `madpo.worker.program`).

Also one process runs under torchrun: a crash or an out-of-memory kills the run and never the supervisor. This is a
process of its own because torchrun would outlive a supervisor that is killed, and keep the port at which ranks meet;
and because only torch knows how many GPUs there are, and supervisors do without torch.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError
from madpo.models.device import require_device
from madpo.worker import program
from madpo.worker.crash import killed
from madpo.worker.failure import Failure, leave_failure
from madpo.worker.workspace import watch_lifeline
from madpo_trainer.settings import TrainerSettings


def main(workspace: Path) -> int:
    """Run the ranks of this host to their end; the exit code is 0 when none of them failed."""
    watch_lifeline(workspace)
    settings = load_settings(TrainerSettings)
    require_device(settings)
    arguments = torchrun_arguments(settings, gpus=torch.cuda.device_count())
    # Its logs would else stay in the temporary folder, which is memory in a container.
    logs = ["--log-dir", str(workspace / "torchrun")]
    _, *rank = program.command("madpo_trainer.run", workspace)
    try:
        # Without the decorator of torchrun's own main, which prints a banner where the error should be.
        torchrun.run(torchrun.parse_args([*arguments, *logs, *rank]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _tell(workspace, error)
        return 1
    except SignalException as error:
        leave_failure(workspace, os.getpid(), replace(killed("the run", error.sigval), time=time.time()))
        return 1
    return 0


def _tell(workspace: Path, error: ChildFailedError) -> None:
    """Leave in the workspace how ranks ended that could not say it; torchrun itself ends those that are left over."""
    for rank, failure in error.failures.items():
        if failure.exitcode == -signal.SIGTERM:
            continue
        said = Failure(f"rank {rank} exited with code {failure.exitcode} before it had finished")
        if failure.exitcode < 0:
            said = killed(f"rank {rank}", -failure.exitcode)
        leave_failure(workspace, failure.pid, replace(said, time=time.time()))


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
