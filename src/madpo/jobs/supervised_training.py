"""Supervised training: fine-tune a language model on completions."""

from typing import Annotated, ClassVar

from madpo.jobs.base import POLICY, DatasetReference, ModelReference, NeedsDataset, NeedsModel
from madpo.jobs.kind import Kind
from madpo.jobs.training import EvaluatedTraining, TrainingParameters
from madpo.types import DatasetKind, JobKind

_ROWS = NeedsDataset(frozenset({DatasetKind.COMPLETION}))


class SupervisedTrainingSpec(EvaluatedTraining):
    """Fine-tune a causal language model on completions."""

    renamed: ClassVar = {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"}

    model: Annotated[ModelReference, NeedsModel(POLICY)]
    """The language model to fine-tune."""
    dataset: Annotated[DatasetReference, _ROWS]
    """Completions to train on."""
    eval_dataset: Annotated[DatasetReference | None, _ROWS] = None
    """Held-out rows, measured before the first step, after the last, and every `training.eval_every_steps`."""
    training: TrainingParameters = TrainingParameters()
    """Steps, batches, optimizer and so on."""


KIND = Kind(
    JobKind.SUPERVISED_TRAINING,
    SupervisedTrainingSpec,
    queue="train",
    noun="sft",
    is_training=True,
    held_out_figures=("loss",),
    leaves_model="causal_lm",
)
