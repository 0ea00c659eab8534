"""Supervised training: completions, and their negative log-likelihood."""

from madpo.data.order import Schedule
from madpo.types import JobKind
from madpo_trainer.kinds.base import TrainingInputs, TrainingKind
from madpo_trainer.objectives.supervised import SupervisedObjective, completion_groups


def build(inputs: TrainingInputs) -> tuple[SupervisedObjective, Schedule]:
    """The objective over completions."""
    rows, held_out = inputs.read(inputs.rows.completions)
    inputs.runner.prove_layout(completion_groups(rows))
    return SupervisedObjective(inputs.runner, rows=rows, held_out=held_out), inputs.schedule(len(rows))


KIND = TrainingKind(JobKind.SUPERVISED_TRAINING, build)
