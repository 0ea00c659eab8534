"""Reward training: fit a Bradley-Terry reward model to preference pairs."""

from typing import Annotated, ClassVar

from madpo.jobs.base import ANY_MODEL, DatasetReference, ModelReference, NeedsDataset, NeedsModel
from madpo.jobs.kind import Kind
from madpo.jobs.training import EvaluatedTraining, TrainingParameters
from madpo.types import DatasetKind, JobKind

_ROWS = NeedsDataset(frozenset({DatasetKind.PREFERENCE}))


class RewardTrainingSpec(EvaluatedTraining):
    """Train a Bradley-Terry reward model on preference pairs."""

    renamed: ClassVar = {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"}

    model: Annotated[ModelReference, NeedsModel(ANY_MODEL)]
    """The model to start from; one that is no reward model gets a new head."""
    dataset: Annotated[DatasetReference, _ROWS]
    """Preference pairs to train on."""
    eval_dataset: Annotated[DatasetReference | None, _ROWS] = None
    """Held-out rows, measured before the first step, after the last, and every `training.eval_every_steps`."""
    training: TrainingParameters = TrainingParameters()
    """Steps, batches, optimizer and so on."""


KIND = Kind(
    JobKind.REWARD_TRAINING,
    RewardTrainingSpec,
    queue="train",
    noun="reward",
    is_training=True,
    held_out_figures=(
        "accuracy",
        "loss",
        "ece",
        "temperature",
        "score_mean",
        "score_std",
        "margin_mean",
        "margin_std",
        "pairs",
    ),
    leaves_model="reward",
)
