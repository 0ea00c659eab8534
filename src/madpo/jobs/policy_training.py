"""Policy training: align a language model with preference pairs, or with lists of scored responses."""

from typing import Annotated, ClassVar

from madpo.jobs.base import POLICY, DatasetReference, ModelReference, NeedsDataset, NeedsModel
from madpo.jobs.kind import Kind
from madpo.jobs.methods import MarginParameters, PreferenceMethod
from madpo.jobs.training import EvaluatedTraining, TrainingParameters
from madpo.types import DatasetKind, JobKind

# Methods of pairs take of a list its best response against its worst.
_ROWS = NeedsDataset(frozenset({DatasetKind.PREFERENCE, DatasetKind.LIST}))


class PolicyTrainingSpec(EvaluatedTraining):
    """Train a policy on preference pairs or lists of scored responses.

    The reference is the initial policy, unless the method moves it.
    """

    renamed: ClassVar = {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"}

    model: Annotated[ModelReference, NeedsModel(POLICY)]
    """The initial policy."""
    dataset: Annotated[DatasetReference, _ROWS]
    """Preference pairs, or lists of scored responses, to train on."""
    eval_dataset: Annotated[DatasetReference | None, _ROWS] = None
    """Held-out rows, measured before the first step, after the last, and every `training.eval_every_steps`."""
    training: TrainingParameters = TrainingParameters()
    """Steps, batches, optimizer and so on."""
    method: PreferenceMethod = PreferenceMethod()
    """What is minimised."""
    margin: MarginParameters | None = None
    """Where reward margins come from, for methods that read them."""


KIND = Kind(
    JobKind.POLICY_TRAINING,
    PolicyTrainingSpec,
    queue="train",
    noun="policy",
    is_training=True,
    held_out_figures=(
        "loss",
        "rewards/implicit_margin",
        "rewards/accuracy",
        "log_ratio_diff/mean",
        "logps/chosen",
        "logps/rejected",
        "pairs",
    ),
    leaves_model="causal_lm",
)
