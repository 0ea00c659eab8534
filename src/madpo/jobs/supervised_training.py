"""Supervised training: fine-tune a language model on completions."""

from typing import Annotated, ClassVar

from madpo.jobs.base import POLICY, DatasetReference, ModelReference, NeedsDataset, NeedsModel, Spec
from madpo.jobs.kind import Kind
from madpo.jobs.training import TrainingParameters
from madpo.types import DatasetKind, JobKind

_ROWS = NeedsDataset(frozenset({DatasetKind.COMPLETION}))


class SupervisedTrainingSpec(Spec):
    """Fine-tune a causal language model on completions."""

    renamed: ClassVar = {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"}

    model: Annotated[ModelReference, NeedsModel(POLICY)]
    """The language model to fine-tune."""
    dataset: Annotated[DatasetReference, _ROWS]
    """Completions to train on."""
    eval_dataset: Annotated[DatasetReference | None, _ROWS] = None
    """Held-out rows, measured before the first and after the last step."""
    training: TrainingParameters = TrainingParameters()
    """Steps, batches, optimizer and so on."""


KIND = Kind(
    JobKind.SUPERVISED_TRAINING,
    SupervisedTrainingSpec,
    queue="train",
    noun="sft",
    is_training=True,
    leaves_model="causal_lm",
)
