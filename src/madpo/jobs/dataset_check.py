"""Dataset check: look at rows through a model's tokenizer and chat template."""

from typing import Annotated, ClassVar

from pydantic import Field

from madpo.jobs.base import ANY_MODEL, DatasetReference, ModelReference, MostTokens, NeedsDataset, NeedsModel, Spec
from madpo.jobs.kind import Kind
from madpo.jobs.training import Overlong
from madpo.types import JobKind


class DatasetCheckSpec(Spec):
    """Look at a dataset through a model's tokenizer and chat template, and keep the tokens for trainings."""

    renamed: ClassVar = {"dataset_id": "dataset", "held_out_dataset_id": "eval_dataset"}

    dataset: Annotated[DatasetReference, NeedsDataset()]
    """What to look at."""
    model: Annotated[ModelReference, NeedsModel(ANY_MODEL)]
    """Whose tokenizer and chat template."""
    eval_dataset: Annotated[DatasetReference | None, NeedsDataset()] = None
    """Rows whose prompts should not be among the checked ones."""
    max_tokens: MostTokens = Field(default=1024, ge=2)
    """Longest prompt plus response, in tokens. No more than the model can read; that is also the default where it is
    less."""
    overlong: Overlong = "error"
    """What a training would do with longer rows; the report says what each policy would leave."""


KIND = Kind(JobKind.DATASET_CHECK, DatasetCheckSpec, queue="evaluate", noun="check")
