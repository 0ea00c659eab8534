"""The evaluator's supervising process: takes one evaluation at a time and launches it. No torch here."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from madpo.jobs.judge import JUDGE_ABILITY
from madpo.worker import program
from madpo.worker.service import WorkerService
from madpo_evaluator.settings import EvaluatorSettings
from madpo_evaluator.text_metrics import installed_metrics


def build(settings: EvaluatorSettings, registry: CollectorRegistry) -> WorkerService:
    """The worker of the evaluation queue; it tells gateways which metrics and judges it has.

    Raises:
        FailedPreconditionError: The engine that the settings ask for is not installed.
    """
    settings.require_engine()
    abilities = [*installed_metrics(), *(JUDGE_ABILITY + name for name in settings.judges)]
    return WorkerService(
        settings,
        registry,
        queue_name="evaluate",
        command=evaluation_command,
        spare=evaluation_command(),
        abilities=abilities,
    )


def evaluation_command(workspace: Path | None = None) -> list[str]:
    """The child process of one job: a crash or an out-of-memory kills the run and never the worker.

    Without a workspace it waits for it.
    """
    return program.command("madpo_evaluator.run", workspace)
