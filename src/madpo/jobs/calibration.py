"""Calibration: measure the scale of a reward model's margins."""

from typing import Annotated, ClassVar

from madpo.jobs.base import REWARD, DatasetReference, ModelReference, NeedsDataset, NeedsModel, Spec
from madpo.jobs.kind import Kind
from madpo.jobs.methods import PreferenceMethod
from madpo.losses.scales import MarginTemperature
from madpo.types import DatasetKind, JobKind

_PAIRS = NeedsDataset(frozenset({DatasetKind.PREFERENCE}))


class CalibrationSpec(Spec):
    """Measure the scale of a reward model's margins, and what a method would make of them, before any training."""

    renamed: ClassVar = {"dataset_id": "eval_dataset", "training_dataset_id": "dataset"}

    eval_dataset: Annotated[DatasetReference, _PAIRS]
    """Held-out pairs: such as the reward model was not trained on."""
    reward_model: Annotated[ModelReference | None, NeedsModel(REWARD, is_served=True)] = None
    """Whose margins; without one, those the datasets brought along."""
    temperature: MarginTemperature = 1.0
    """Divides margins before the method reads them; "fit" finds it on the held-out pairs."""
    method: PreferenceMethod = PreferenceMethod()
    """What reads the margins."""
    dataset: Annotated[DatasetReference | None, _PAIRS] = None
    """The pairs to be trained on, for quantiles and weights; without them, the held-out ones."""


KIND = Kind(JobKind.CALIBRATION, CalibrationSpec, queue="evaluate", noun="calibration")
