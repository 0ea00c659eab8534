"""The report of an evaluation: what a job stores as `report.json`, and the SDK gives back.

Intervals are 95 % intervals; samples of one prompt resemble each other, so the prompt is the unit. They are None with
only one prompt.
"""

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_serializer

from madpo.jobs.base import ModelReference
from madpo.jobs.sampling import SamplingParameters

Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Estimate(_Part):
    """A mean with the standard deviation of single samples."""

    mean: float
    std: float
    ci: Interval | None


class Accuracy(_Part):
    """Share of pairs ordered rightly."""

    accuracy: float
    ci: Interval
    pairs: int


class Comparison(_Part):
    """Wins and mean difference against a baseline on the same prompts."""

    win_rate: float
    """Of samples, ties counted as half a win."""
    tie_rate: float = 0.0
    """Share of samples that are equal."""
    win_rate_ci: Interval | None
    difference: float
    difference_ci: Interval | None


class EvaluationResult(_Part):
    """What one temperature gave."""

    temperature: float
    metrics: dict[str, Estimate]
    """By name; `reward` is the reward model's score."""
    kl: Estimate | None
    """To the reference, along the responses, in nats; None without a reference."""
    response_tokens: Estimate
    finished_ratio: float
    """Share of responses that ended before the token limit."""
    versus: dict[str, dict[str, Comparison]]
    """By the baseline's job id, then by metric."""


class EvaluatedModel(_Part):
    """A model as the job named it, and the id it resolved to; a checkpoint has none."""

    model_id: str | None = None
    job_id: str | None = None
    step: int | None = None

    @classmethod
    def of(cls, reference: ModelReference, *, model_id: str | None) -> Self:
        """What a reference named, with the id it resolved to."""
        return cls(model_id=model_id, job_id=reference.job_id, step=reference.step)

    @model_serializer
    def _without_none(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}


class EvaluationReport(_Part):
    """Everything that was measured."""

    name: str
    model: EvaluatedModel
    reference: EvaluatedModel | None
    reward_model_id: str | None
    sampling: SamplingParameters
    engine: str = "transformers"
    """What drew the responses; policies share their random numbers where it is the same."""
    prompts: int
    samples_per_prompt: int
    results: tuple[EvaluationResult, ...]
    """One for each temperature."""
    implicit_reward_accuracy: Accuracy | None
    """How often the policy's implicit reward orders held-out pairs as their labels do."""
    skipped_rows: tuple[int, ...] = ()
    """Rows whose prompts leave no room for a response in the model's context."""
    truncated_responses: int = 0
    """Responses that the reward model read only a part of, of all temperatures."""

    def to_json(self) -> str:
        """The file `report.json`; equal reports give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`."""
        return cls.model_validate_json(text)
