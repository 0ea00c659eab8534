"""The trainer's supervising process: takes one training job at a time and launches its ranks. No torch here."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.worker import program
from madpo.worker.service import WorkerService
from madpo_trainer.follower import FollowerService
from madpo_trainer.settings import TrainerSettings


def build(settings: TrainerSettings, registry: CollectorRegistry) -> WorkerService | FollowerService:
    """The worker of the training queue on host 0; on others, what follows it."""
    if settings.node_rank > 0:
        return FollowerService(settings, command=training_command)
    return WorkerService(settings, registry, queue_name="train", command=training_command, spare=training_command())


def training_command(workspace: Path | None = None) -> list[str]:
    """The ranks of this host; without a workspace they wait for it."""
    return program.command("madpo_trainer.launch", workspace)
