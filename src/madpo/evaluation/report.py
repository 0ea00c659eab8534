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


class Judged(_Part):
    """What a judge says of responses beside others to the same prompts, each pair shown in both orders.

    A pair is won where both answers together speak for the policy: two answers that contradict each other make a tie.
    """

    pairs: int
    """Judged in both orders."""
    unjudged: int = 0
    """Pairs without two answers that can be read; left out of all figures."""
    wins: int
    ties: int
    losses: int
    win_rate: float
    """Of answers, a tie counted as half a win; the mean over prompts."""
    win_rate_ci: Interval | None
    length_controlled_win_rate: float
    """What it would be were both responses equally long (Dubois et al., arXiv:2404.04475)."""
    length_controlled_win_rate_ci: Interval | None
    agreement: float
    """Share of pairs of which the judge says the same in both orders."""
    first_rate: float | None
    """Of answers that are no ties, the share for the response that was shown first: 0.5 without a bias."""


class JudgeUse(_Part):
    """Who judged, and what it took, earlier attempts included."""

    name: str
    """As the evaluator's operator calls it."""
    model: str
    questions: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = None
    """By the operator's prices, in their currency; None where there are none."""


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
    judged: dict[str, Judged] = {}
    """By the baseline's job id; `chosen` are the dataset's chosen responses."""


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
    judge: JudgeUse | None = None
    """Where there was one."""

    def to_json(self) -> str:
        """The file `report.json`; equal reports give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`."""
        return cls.model_validate_json(text)
