"""Reward training: preference pairs, and their Bradley-Terry likelihood."""

from madpo.data.order import Schedule
from madpo.types import JobKind
from madpo_trainer.kinds.base import TrainingInputs, TrainingKind
from madpo_trainer.objectives.reward import RewardObjective, pair_groups


def build(inputs: TrainingInputs) -> tuple[RewardObjective, Schedule]:
    """The objective over pairs."""
    pairs, held_out = inputs.read(inputs.rows.pairs)
    inputs.runner.prove_layout(pair_groups(pairs))
    return RewardObjective(inputs.runner, pairs=pairs, held_out=held_out), inputs.schedule(len(pairs))


KIND = TrainingKind(JobKind.REWARD_TRAINING, build)
