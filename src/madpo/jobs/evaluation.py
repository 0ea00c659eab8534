"""Evaluation: generate from a policy, and measure what it says."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from madpo.jobs.base import (
    POLICY,
    REWARD,
    DatasetReference,
    JobId,
    ModelReference,
    NeedsDataset,
    NeedsJobs,
    NeedsModel,
    Spec,
)
from madpo.jobs.judge import JUDGE_ABILITY, JudgeParameters
from madpo.jobs.kind import Ability, Kind
from madpo.jobs.sampling import SamplingParameters
from madpo.types import AtMost, DatasetKind, JobKind

REWARD_METRIC = "reward"
"""Name of the reward model's score among the metrics of a report; no other metric may have it."""


class EvaluationSpec(Spec):
    """Generate from a policy and measure what it says."""

    renamed: ClassVar = {
        "prompt_dataset_id": "prompt_dataset",
        "preference_dataset_id": "eval_dataset",
        "batch_size": "generation_batch_size",
    }

    model: Annotated[ModelReference, NeedsModel(POLICY)]
    """The policy to generate from."""
    prompt_dataset: Annotated[DatasetReference, NeedsDataset()]
    """Its prompts are used, whatever its rows are."""
    reference: Annotated[ModelReference | None, NeedsModel(POLICY)] = None
    """What KL is measured to."""
    reward_model: Annotated[ModelReference | None, NeedsModel(REWARD, is_served=True)] = None
    """Scores the responses."""
    eval_dataset: Annotated[DatasetReference | None, NeedsDataset(frozenset({DatasetKind.PREFERENCE}))] = None
    """Held-out pairs for the accuracy of the implicit reward; needs `reference`."""
    baseline_job_ids: Annotated[tuple[JobId, ...], NeedsJobs(JobKind.EVALUATION), AtMost(100)] = ()
    """Evaluation jobs over the same prompts and sampling to compare with."""
    metrics: Annotated[tuple[str, ...], AtMost(100)] = ()
    """Names of registered text metrics (entry points `madpo.metrics`)."""
    judge: JudgeParameters | None = None
    """Who compares the responses with those of the baselines, or with the dataset's chosen ones."""
    sampling: SamplingParameters = SamplingParameters()
    """How responses are drawn."""
    max_prompts: Annotated[int | None, AtMost(1_000_000_000)] = Field(default=None, ge=1)
    """Use the first prompts only."""
    generation_batch_size: Annotated[int | None, AtMost(65_536)] = Field(default=None, ge=1)
    """Responses generated at a time; by default what memory has room for, at most 256 on a GPU and 64 elsewhere."""

    @field_validator("metrics")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if REWARD_METRIC in names:
            raise ValueError(f"{REWARD_METRIC} is the score of the reward model: give reward_model instead")
        if any(not name.strip() for name in names):
            raise ValueError("the name of a metric is missing")
        return names

    @model_validator(mode="after")
    def _pairs_need_a_reference(self) -> Self:
        if self.eval_dataset is not None and self.reference is None:
            raise ValueError("eval_dataset needs reference: implicit rewards are measured against it")
        return self

    @model_validator(mode="after")
    def _a_judge_compares(self) -> Self:
        if self.judge is not None and not (self.baseline_job_ids or self.judge.against_chosen):
            raise ValueError(
                "judge has nothing to compare with: give baseline_job_ids, evaluations of other models over the same "
                "prompts, or judge.against_chosen for the chosen responses of prompt_dataset"
            )
        return self


KIND = Kind(
    JobKind.EVALUATION,
    EvaluationSpec,
    queue="evaluate",
    noun="evaluation",
    abilities=(Ability("metrics", "metric"), Ability("judge.name", "judge", prefix=JUDGE_ABILITY)),
)
