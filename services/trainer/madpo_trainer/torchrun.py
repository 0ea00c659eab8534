"""Several ranks of a host, started by torchrun for one attempt.

In a process of its own, because torchrun would outlive a supervisor that is killed, and keep the port at which ranks
meet.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from madpo.worker import program
from madpo.worker.crash import killed
from madpo.worker.failure import Failure, leave_failure
from madpo.worker.workspace import watch_lifeline
from madpo_trainer.settings import TrainerSettings


def main(workspace: Path, settings: TrainerSettings, *, ranks: int) -> int:
    """Run the ranks of this host to their end; the exit code is 0 when none of them failed."""
    watch_lifeline(workspace)
    arguments = torchrun_arguments(settings, ranks=ranks)
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


def torchrun_arguments(settings: TrainerSettings, *, ranks: int) -> list[str]:
    """How torchrun starts the ranks of this host and finds those of the others.

    Several hosts meet at a fixed address, so that rank 0 is always on the host that holds the job.
    """
    processes = ["--nproc-per-node", str(ranks)]
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
