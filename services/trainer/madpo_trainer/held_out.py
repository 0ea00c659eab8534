"""Evaluation on held-out rows while training goes on: when it is due, which step was best, and when to stop early.

What it knows is part of the checkpoint, so a run that goes on decides as one that was never stopped.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import TrainingParameters
from madpo_trainer.state import TrainingState

_LOWER_IS_BETTER = ("loss", "error", "brier", "ece")
"""Parts of the names of metrics of which less is better."""


class HeldOutEvaluation:
    """Looks at the held-out rows every so many steps.

    Args:
        evaluate: Figures of the present weights; all ranks call it, and get the same. Empty without held-out rows.
        parameters: Of the job.
        state: Read, and kept up to date.
        total_steps: Of the job; the last step is looked at too.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        *,
        parameters: TrainingParameters,
        state: TrainingState,
        total_steps: int,
    ) -> None:
        self._evaluate, self._parameters, self._state, self._total_steps = evaluate, parameters, state, total_steps

    @property
    def is_due(self) -> bool:
        """Whether the weights of the present step are to be looked at and were not."""
        every, step = self._parameters.eval_every_steps, self._state.step
        if every is None or step == 0 or self._state.evaluated_step == step:
            return False
        return step % every == 0 or step == self._total_steps

    @property
    def best_step(self) -> int | None:
        """The step that was best so far, None before the first look."""
        return self._state.best.get("step")

    @property
    def should_stop(self) -> bool:
        """Whether the best step lies too many looks behind."""
        patience = self._parameters.early_stopping_patience
        return patience is not None and self._state.evaluations_since_best >= patience

    def require_metric(self, figures: dict[str, float]) -> None:
        """See before the first step whether the best step can be told.

        Args:
            figures: On the held-out rows; empty where there are none.

        Raises:
            InvalidArgumentError: The job's `best_metric` is not among them.
        """
        if figures and self._parameters.eval_every_steps is not None:
            self._value(figures)

    def look(self) -> dict[str, float]:
        """Evaluate, and take down what came of it. Raises Interrupted where the run is asked to stop meanwhile."""
        figures, state = self._evaluate(), self._state
        state.evaluated_step, state.last_eval = state.step, figures
        value = self._value(figures)
        if math.isfinite(value) and (not state.best or self._is_better(value, state.best["value"])):
            metric = self._parameters.best_metric
            state.best = {"step": state.step, "metric": metric, "value": value, "eval": figures}
            state.evaluations_since_best = 0
        else:
            state.evaluations_since_best += 1
        return figures

    def _is_better(self, value: float, best: float) -> bool:
        lower = any(part in self._parameters.best_metric for part in _LOWER_IS_BETTER)
        return value < best if lower else value > best

    def _value(self, figures: dict[str, float]) -> float:
        try:
            return figures[self._parameters.best_metric]
        except KeyError:
            raise InvalidArgumentError.in_field(
                "training.best_metric",
                f"no figure {self._parameters.best_metric!r} on the held-out rows; there are {', '.join(figures)}",
            ) from None


def describe_publication(state: TrainingState, parameters: TrainingParameters) -> dict[str, Any]:
    """Which step's weights are the job's model, which was best, and whether training stopped early."""
    if not state.best:
        return {}
    return {
        "published_step": state.best["step"] if parameters.publishes_best else state.step,
        "best": {name: state.best[name] for name in ("step", "metric", "value")},
        "stopped_early": state.stopped_early,
    }


@torch.no_grad()
def take_weights(model: nn.Module, source: nn.Module) -> None:
    """Give a model the weights of another one that has the same ones and is sharded alike."""
    weights = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
