"""`python -m madpo_trainer`: the trainer service."""

import sys

from madpo.rpc.server import run_service
from madpo_trainer.service import build
from madpo_trainer.settings import TrainerSettings

if __name__ == "__main__":
    sys.exit(run_service("trainer", TrainerSettings, build))
