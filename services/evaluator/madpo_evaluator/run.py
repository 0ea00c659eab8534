"""One attempt at a job, in a process of its own (see `madpo.worker.program`)."""

import logging
from pathlib import Path

import torch

from madpo.config import load_settings
from madpo.errors import RETRYABLE, MadpoError
from madpo.models.device import bound_gpu_memory, require_device, sees_gpu, use_tensor_cores
from madpo.telemetry.logging import configure_logging
from madpo.worker.phase import Interrupted
from madpo.worker.workspace import Run
from madpo_evaluator.kinds.base import JobInputs
from madpo_evaluator.kinds.registry import evaluator_kind
from madpo_evaluator.settings import EvaluatorSettings

logger = logging.getLogger(__name__)


def may_be_copied() -> bool:
    """Whether a copy of this process can do what it can."""
    return not sees_gpu()


def main(workspace: Path) -> None:
    """Run the attempt in `workspace` and leave its outcome there.

    Errors that name something wrong with the job fail it; everything else ends the process with a traceback.
    """
    settings = load_settings(EvaluatorSettings)
    configure_logging(service="evaluator-run", level=settings.log_level, format=settings.log_format)
    run = Run.open(workspace)
    run.watch_lifeline()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        require_device(settings)
        bound_gpu_memory(settings)
        settings.require_engine()
        use_tensor_cores()
        kind = evaluator_kind(run.job.kind)
        run.succeed(kind.execute(JobInputs.open(run, settings)))
    except Interrupted:
        run.stop()
    except RETRYABLE:
        raise
    except MadpoError as error:
        logger.exception("the job cannot go on")
        run.fail(str(error))
