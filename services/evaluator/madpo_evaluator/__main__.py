"""`python -m madpo_evaluator`: the evaluator service."""

import sys

from madpo.rpc.server import run_service
from madpo_evaluator.service import build
from madpo_evaluator.settings import EvaluatorSettings

if __name__ == "__main__":
    sys.exit(run_service("evaluator", EvaluatorSettings, build))
