"""`python -m madpo_trainer`: the trainer service; with `health`, whether it serves."""

import sys

from prometheus_client import CollectorRegistry

from madpo.rpc.server import Service, run_service
from madpo_trainer.settings import TrainerSettings


def build(settings: TrainerSettings, registry: CollectorRegistry) -> Service:
    """The service; its imports are not for a health check."""
    from madpo_trainer.service import build

    return build(settings, registry)


if __name__ == "__main__":
    sys.exit(run_service("trainer", TrainerSettings, build))
