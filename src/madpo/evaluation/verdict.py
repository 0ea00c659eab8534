"""What came of a comparison of policies: figures, what can be said of them, and what cannot."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from madpo.evaluation.report import Accuracy, Comparison, Estimate

FAR_NATS = 20.0
"""A policy this far from its reference may have left what the reward model can judge."""
_CUT_OFF = 0.5
_LESS_FINISHED, _LESS_ACCURATE = 0.1, 0.05


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Measured(_Part):
    """What an evaluation measured, at one temperature."""

    name: str
    evaluation_job_id: str
    reward: Estimate
    """Of the reward model, in its logits."""
    metrics: dict[str, Estimate]
    """Others, by name."""
    kl: Estimate | None
    """To the start, in nats a response."""
    response_tokens: Estimate
    finished_ratio: float
    accuracy: Accuracy | None = None
    """Of the implicit reward on held-out pairs."""
    against_start: Comparison | None = None
    """By the reward; None for the start itself."""
    against_first: Comparison | None = None
    """Against the first policy; None for the start and for itself."""


class PolicyVerdict(_Part):
    """One policy."""

    measured: Measured
    """After its last step."""
    rounds: tuple[Measured, ...] = ()
    """After each round, where it has several; the last is `measured`."""
    method: str
    params: dict[str, Any]
    seed: int
    model_id: str | None
    training_job_ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.measured.name


class Example(_Part):
    """What all answered to one prompt."""

    prompt: str
    responses: dict[str, str]
    """By policy, the start first."""
    rewards: dict[str, float]


class Cost(_Part):
    """What the jobs took."""

    job_seconds: float
    """Of work, summed over jobs; one that waits for others does not work."""
    training_seconds: float
    """Of those, in optimizer steps."""
    sampled_tokens: int
    """Drawn by samplings and evaluations."""


class Verdict(_Part):
    """The whole of it."""

    name: str
    reward_model: str
    """What stands for it, with its accuracy on held-out pairs where it was trained here."""
    start: Measured
    policies: tuple[PolicyVerdict, ...]
    examples: tuple[Example, ...] = ()
    warnings: tuple[str, ...] = ()
    """Of the jobs, and what speaks against reading rewards as they are."""
    cost: Cost
    jobs: dict[str, str] = {}
    """Ids by the names of steps."""

    @property
    def sentences(self) -> list[str]:
        """What the intervals allow to say, one sentence a policy, the best first."""
        ranked = sorted(self.policies, key=lambda policy: -policy.measured.reward.mean)
        return [_sentence(policy, self.policies[0]) for policy in ranked]


def _sentence(policy: PolicyVerdict, first: PolicyVerdict) -> str:
    measured = policy.measured
    parts = [f"reward {measured.reward.mean:.3g}"]
    if measured.against_start is not None:
        parts.append(f"{difference(measured.against_start)} the start")
    if measured.against_first is not None:
        parts.append(f"{difference(measured.against_first)} {first.name}")
    if measured.kl is not None:
        parts.append(f"at a KL of {measured.kl.mean:.3g} nats")
    return f"{policy.name}: {', '.join(parts)}."


def difference(comparison: Comparison) -> str:
    """How far ahead or behind, in words, as far as the interval tells."""
    if comparison.difference_ci is None:
        return f"{comparison.difference:+.3g} (one prompt tells nothing) against"
    low, high = comparison.difference_ci
    interval = f"{comparison.difference:+.3g} (95 % CI {low:+.3g} to {high:+.3g})"
    if low > 0:
        return f"{interval} ahead of"
    return f"{interval} behind" if high < 0 else f"{interval}, not distinguishable from"


def doubts(name: str, steps: Sequence[Measured]) -> list[str]:
    """What says that rewards are not to be believed, most of all one that rises from a measurement to the next.

    Gao et al., arXiv:2210.10760: the score of a proxy goes on rising where true quality falls, the further the policy
    is from its reference. Rising reward is doubted where held-out implicit accuracy or the share of finished responses
    falls meanwhile, or the policy is far away.

    Args:
        name: Of the policy.
        steps: The start, then the policy after each round.
    """
    found: list[str] = []
    if steps[-1].finished_ratio < _CUT_OFF:
        found.append(
            f"{name}: {1 - steps[-1].finished_ratio:.0%} of its responses are cut off, so that their rewards are those "
            "of beginnings: raise evaluation.sampling.max_new_tokens"
        )
    for before, after in pairwise(steps):
        if after.reward.mean <= before.reward.mean:
            continue
        where = f"{name}: the reward rose from {before.reward.mean:.3g} to {after.reward.mean:.3g}, and"
        if before.finished_ratio - after.finished_ratio > _LESS_FINISHED:
            found.append(
                f"{where} the share of finished responses fell from {before.finished_ratio:.0%} to "
                f"{after.finished_ratio:.0%}: it may have learned to please the reward model; read the examples"
            )
        if before.accuracy and after.accuracy and before.accuracy.accuracy - after.accuracy.accuracy > _LESS_ACCURATE:
            found.append(
                f"{where} the accuracy of its implicit reward on held-out pairs fell from "
                f"{before.accuracy.accuracy:.1%} to {after.accuracy.accuracy:.1%}: the reward model may be "
                "over-optimised"
            )
        if after.kl is not None and after.kl.mean > FAR_NATS:
            found.append(
                f"{where} it is {after.kl.mean:.3g} nats from the start: the reward model has hardly seen such "
                "responses; raise beta or train less"
            )
    return found
