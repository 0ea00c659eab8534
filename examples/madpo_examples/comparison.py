"""How policies compare: rows and a verdict, restating what evaluation jobs measured. Nothing is estimated again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from madpo.evaluation import report
from madpo_client.job import JobHandle

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % confidence interval."""

    mean: float
    ci: Interval

    def __str__(self) -> str:
        return f"{round(self.mean, 2) + 0.0:.2f} ± {(self.ci[1] - self.ci[0]) / 2:.2f}"  # + 0.0: never -0.00

    def __neg__(self) -> "Estimate":
        return Estimate(0.0 - self.mean, (0.0 - self.ci[1], 0.0 - self.ci[0]))

    @property
    def side_of_zero(self) -> int:
        """1 or -1 when the interval lies on that side of zero, else 0."""
        return int(self.ci[0] > 0) - int(self.ci[1] < 0)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation job at one temperature."""

    job_id: str
    result: report.EvaluationResult
    """The only entry of the report's `results`."""
    generations: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, handle: JobHandle) -> "Evaluation":
        """Read report and generations of a job that has succeeded."""
        (result,) = handle.report().results
        return cls(handle.id, result, list(json_lines(handle.read_artifact("generations.jsonl"))))


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy of the comparison.

    Attributes:
        reward: Mean of the demo's metric over all samples.
        reward_model_score: Mean score of the reward model, in its logits: what MADPO was steered by.
        kl: To the reference policy, in nats a response.
        win_rate: Share of samples that beat the reference policy's sample to the same prompt; None for itself.
        difference_to_dpo: Reward minus DPO's, paired over prompts; None for DPO.
        shares: Means of further metrics by the name they are shown under.
    """

    name: str
    reward: Estimate
    reward_model_score: Estimate
    kl: Estimate
    win_rate: Estimate | None
    difference_to_dpo: Estimate | None
    shares: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Flat form for the summary: each estimate as `name` and `name_ci`."""
        values: dict[str, Any] = {"name": self.name, **self.shares}
        for key in ("reward", "reward_model_score", "kl", "win_rate", "difference_to_dpo"):
            estimate: Estimate | None = getattr(self, key)
            values[key] = estimate.mean if estimate else None
            values[f"{key.removesuffix('_to_dpo')}_ci"] = list(estimate.ci) if estimate else None
        return values


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """How far a policy had moved after some steps, and what that was worth.

    Attributes:
        step: Of the checkpoint.
        reward: Mean of the demo's metric over all samples.
        kl: To the reference policy, in nats a response.
    """

    step: int
    reward: Estimate
    kl: Estimate

    @classmethod
    def of(cls, step: int, evaluation: Evaluation, *, metric: str) -> "FrontierPoint":
        """Read it from the evaluation of a checkpoint; `metric` is the one that is the reward."""
        result = evaluation.result
        return cls(step, _estimate(result.metrics[metric]), _estimate(result.kl))

    def to_json(self) -> dict[str, Any]:
        """Flat form for the summary: each estimate as `name` and `name_ci`."""
        return {
            "step": self.step,
            "reward": self.reward.mean,
            "reward_ci": list(self.reward.ci),
            "kl": self.kl.mean,
            "kl_ci": list(self.kl.ci),
        }


def json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines artifact."""
    return (json.loads(line) for line in data.decode().splitlines() if line)


def compare(
    evaluations: Mapping[str, Evaluation], *, metric: str, shares: Mapping[str, str] | None = None
) -> list[PolicyRow]:
    """Rows of the comparison.

    Args:
        evaluations: By policy name: the reference policy first, then `dpo` (with the reference as baseline), then
            `madpo` (with both as baselines).
        metric: The metric that is the reward.
        shares: Further metrics to show, by metric name, with the name to show.
    """
    reference, *_ = evaluations
    to_dpo = {
        reference: -_difference(evaluations["dpo"], evaluations[reference], metric),
        "dpo": None,
        "madpo": _difference(evaluations["madpo"], evaluations["dpo"], metric),
    }
    return [
        PolicyRow(
            name=name,
            reward=_estimate(evaluation.result.metrics[metric]),
            reward_model_score=_estimate(evaluation.result.metrics["reward"]),
            kl=_estimate(evaluation.result.kl),
            win_rate=None if name == reference else _win_rate(evaluation, evaluations[reference], metric),
            difference_to_dpo=to_dpo[name],
            shares={shown: evaluation.result.metrics[key].mean for key, shown in (shares or {}).items()},
        )
        for name, evaluation in evaluations.items()
    ]


def verdict(rows: Sequence[PolicyRow], *, reward: str) -> str:
    """What the intervals allow to say about MADPO and DPO, and nothing more.

    Args:
        rows: Of one run; `madpo` carries its difference to `dpo`.
        reward: What the reward is called, such as "true reward".
    """
    by_name = {row.name: row for row in rows}
    dpo, madpo = by_name["dpo"], by_name["madpo"]
    difference = madpo.difference_to_dpo
    assert difference is not None, "madpo is always compared with dpo"
    outcome = {1: "ahead", 0: "not distinguishable", -1: "behind"}[difference.side_of_zero]
    low, high = difference.ci
    apart = dpo.kl.ci[1] < madpo.kl.ci[0] or madpo.kl.ci[1] < dpo.kl.ci[0]
    distance = (
        "the two stand at different distances from it, so part of the difference may only be how far each one moved"
        if apart
        else "the two intervals overlap"
    )
    return (
        f"MADPO minus DPO is {difference.mean:+.2f} (95 % CI {low:+.2f} to {high:+.2f}) in mean {reward}: {outcome} on "
        f"this single seed. KL to {rows[0].name}: MADPO {madpo.kl}, DPO {dpo.kl}: {distance}."
    )


def _estimate(value: report.Estimate | None) -> Estimate:
    assert value is not None
    return _with_interval(value.mean, value.ci)


def _with_interval(mean: float, ci: report.Interval | None) -> Estimate:
    assert ci is not None, "the demos evaluate many prompts, and against a reference"
    return Estimate(mean, ci)


def _difference(evaluation: Evaluation, baseline: Evaluation, metric: str) -> Estimate:
    comparison = evaluation.result.versus[baseline.job_id][metric]
    return _with_interval(comparison.difference, comparison.difference_ci)


def _win_rate(evaluation: Evaluation, baseline: Evaluation, metric: str) -> Estimate:
    comparison = evaluation.result.versus[baseline.job_id][metric]
    return _with_interval(comparison.win_rate, comparison.win_rate_ci)
