"""Scoring: give the rows of a dataset a reward model's rewards."""

from typing import Annotated

from madpo.jobs.base import REWARD, DatasetReference, ModelReference, NeedsDataset, NeedsModel, Spec
from madpo.jobs.kind import Kind
from madpo.types import DatasetKind, JobKind

_SCORED = frozenset({DatasetKind.PREFERENCE, DatasetKind.LIST})


class ScoringSpec(Spec):
    """Score a dataset with a reward model, and leave it with rewards: margins of its pairs, scores of its lists."""

    dataset: Annotated[DatasetReference, NeedsDataset(_SCORED)]
    """What to score. Labels and order stay as they are; rewards that rows had are replaced."""
    reward_model: Annotated[ModelReference, NeedsModel(REWARD, is_served=True)]
    """Whose rewards."""


KIND = Kind(JobKind.SCORING, ScoringSpec, queue="evaluate", noun="scores", leaves_dataset=_SCORED)
