"""The trainer's supervising process: takes one training job at a time and launches it with torchrun. No torch here."""

import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.jobs import QUEUE_NAMES
from madpo.queue.service import WorkerService
from madpo.types import JobKind
from madpo_trainer.settings import TrainerSettings


def build(settings: TrainerSettings, registry: CollectorRegistry) -> WorkerService:
    """The worker of the training queue."""
    return WorkerService(settings, registry, queue_name=QUEUE_NAMES[JobKind.POLICY_TRAINING], command=training_command)


def training_command(workspace: Path) -> list[str]:
    """torchrun, also for one process: a crash or an out-of-memory kills the run and never the worker."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    return [*launcher, "-m", "madpo_trainer.run", str(workspace)]
