"""`python -m madpo_evaluator`: the evaluator service; with `health`, whether it serves."""

import sys

from prometheus_client import CollectorRegistry

from madpo.rpc.server import Service, run_service
from madpo_evaluator.settings import EvaluatorSettings


def build(settings: EvaluatorSettings, registry: CollectorRegistry) -> Service:
    """The service; its imports are not for a health check."""
    from madpo_evaluator.service import build

    return build(settings, registry)


if __name__ == "__main__":
    sys.exit(run_service("evaluator", EvaluatorSettings, build))
