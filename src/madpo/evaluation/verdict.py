"""What came of a comparison of policies: figures, what can be said of them, and what cannot."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from statistics import fmean, stdev
from typing import Any

from pydantic import BaseModel, ConfigDict

from madpo.evaluation.report import Accuracy, Comparison, Estimate

REWARD = "reward"
"""The metric that is the reward model's score."""

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
    prompts: int | None = None
    """How many were answered."""
    round: int | None = None
    """Of a checkpoint or of what a round left, from 1."""
    step: int | None = None
    """Of a checkpoint, in its training."""
    kl: Estimate | None
    """To the start, in nats a response."""
    response_tokens: Estimate
    finished_ratio: float
    accuracy: Accuracy | None = None
    """Of the implicit reward on held-out pairs."""
    against_start: Comparison | None = None
    """By the verdict's metric; None for the start itself and for checkpoints."""
    against_first: Comparison | None = None
    """Against the first policy; None for the start, for itself and for checkpoints."""

    def score(self, metric: str) -> Estimate:
        """By one of the metrics, or by the reward."""
        return self.reward if metric == REWARD else self.metrics[metric]


class PolicyVerdict(_Part):
    """One policy."""

    measured: Measured
    """After its last step."""
    rounds: tuple[Measured, ...] = ()
    """After each round, where it has several."""
    checkpoints: tuple[Measured, ...] = ()
    """On the way, where checkpoints were evaluated, in their order."""
    stopped: str | None = None
    """Why it was stopped before its last round; `measured` is then of the round before, or of the start."""
    method: str
    params: dict[str, Any]
    seed: int
    model_id: str | None
    training_job_ids: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.measured.name

    @property
    def path(self) -> list[Measured]:
        """Checkpoints, rounds and `measured`, in the order of training."""
        by_job = {each.evaluation_job_id: each for each in (*self.checkpoints, *self.rounds, self.measured)}
        return sorted(by_job.values(), key=lambda each: (each.round or 1, each.step is None, each.step or 0))


class SeedSummary(_Part):
    """Policies that differ in nothing but their seed."""

    name: str
    seeds: tuple[int, ...]
    mean: float
    """Of the verdict's metric."""
    spread: float
    """Standard deviation between seeds."""
    lowest: float
    highest: float
    kl: float | None
    """Mean, in nats."""
    kl_spread: float | None

    def __str__(self) -> str:
        span = f"{self.lowest:.3g} to {self.highest:.3g}"
        return f"{self.mean:.3g}, spread {self.spread:.2g} over {len(self.seeds)} seeds ({span})"


class PairShown(_Part):
    """A pair of a policy's training data, as it was when last trained on."""

    row: int
    """Of the dataset, from 1."""
    reward_margin: float
    weight: float
    implicit_margin: float
    prompt: str
    chosen: str
    rejected: str


class PairsThatMattered(_Part):
    """What a policy's ledger says of its training pairs."""

    policy: str
    pairs: int
    contradicted_ratio: float
    """Share of pairs whose label the reward model contradicts."""
    contradicted_weight_ratio: float
    """Share of all weight that these had."""
    heaviest: tuple[PairShown, ...]
    """Those with the largest weights."""
    contradicted: tuple[PairShown, ...]
    """Those that the reward model contradicts most."""


class DataFinding(_Part):
    """What a check found in a dataset of the recipe."""

    dataset: str
    severity: str
    """`error`, `warning` or `info`."""
    title: str
    count: int
    """Of rows, or what the title says."""
    rows: tuple[int, ...] = ()
    advice: str = ""


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
    trained_tokens: int = 0
    """Gone through by trainings, each as often as it was."""


class Verdict(_Part):
    """The whole of it."""

    name: str
    reward_model: str
    """What stands for it, with its accuracy on held-out pairs where it was trained here."""
    start: Measured
    policies: tuple[PolicyVerdict, ...]
    metric: str = REWARD
    """What policies are compared by."""
    examples: tuple[Example, ...] = ()
    pairs: tuple[PairsThatMattered, ...] = ()
    """Of policies whose pairs had reward margins."""
    data: tuple[DataFinding, ...] = ()
    warnings: tuple[str, ...] = ()
    """Of the jobs, and what speaks against reading rewards as they are."""
    cost: Cost
    jobs: dict[str, str] = {}
    """Ids by the names of steps."""

    @property
    def metrics(self) -> list[str]:
        """All that was measured, what policies are compared by first."""
        return [self.metric, *(name for name in (REWARD, *self.start.metrics) if name != self.metric)]

    @property
    def sentences(self) -> list[str]:
        """What the intervals allow to say, one sentence a policy, the best first."""
        ranked = sorted(self.policies, key=lambda policy: -policy.measured.score(self.metric).mean)
        return [_sentence(policy, self.policies[0], self.metric) for policy in ranked]

    @property
    def undecided(self) -> list[str]:
        """What was compared, and cannot be told apart: one phrase each."""
        first = self.policies[0].name
        return [
            f"{policy.name} from {other}"
            for policy in self.policies
            for comparison, other in (
                (policy.measured.against_start, "the start"),
                (policy.measured.against_first, first),
            )
            if comparison is not None and not is_decided(comparison)
        ]

    @property
    def seeds(self) -> list[SeedSummary]:
        """Of policies of several seeds, a summary for each method with its parameters."""
        groups = [list(group) for _, group in groupby(sorted(self.policies, key=_recipe), key=_recipe)]
        order = {policy.name: place for place, policy in enumerate(self.policies)}
        several = [group for group in groups if len(group) > 1]
        return [_summary(group, self.metric) for group in sorted(several, key=lambda group: order[group[0].name])]


def _recipe(policy: PolicyVerdict) -> str:
    """The same for policies that differ in nothing but their seed."""
    return f"{policy.method}/{len(policy.rounds)}/{sorted(policy.params.items())}"


def _summary(group: Sequence[PolicyVerdict], metric: str) -> SeedSummary:
    beta, rounds = group[0].params.get("beta"), len(group[0].rounds)
    name = group[0].method
    name += f", beta {beta:g}" if isinstance(beta, (int, float)) else ""
    name += f", {rounds} rounds" if rounds else ""
    scores = [policy.measured.score(metric).mean for policy in group]
    kls = [policy.measured.kl.mean for policy in group if policy.measured.kl is not None]
    return SeedSummary(
        name=name,
        seeds=tuple(policy.seed for policy in group),
        mean=fmean(scores),
        spread=stdev(scores),
        lowest=min(scores),
        highest=max(scores),
        kl=fmean(kls) if kls else None,
        kl_spread=stdev(kls) if len(kls) > 1 else None,
    )


def _sentence(policy: PolicyVerdict, first: PolicyVerdict, metric: str) -> str:
    return f"{policy.name}: {', '.join(_parts(policy, first, metric))}." + (
        f" Stopped: {policy.stopped}." if policy.stopped else ""
    )


def _parts(policy: PolicyVerdict, first: PolicyVerdict, metric: str) -> Iterator[str]:
    measured = policy.measured
    yield f"{metric} {figure(measured.score(metric))}"
    if measured.against_start is not None:
        yield f"{difference(measured.against_start)} the start"
    if measured.against_first is not None:
        yield f"{difference(measured.against_first)} {first.name}"
    if measured.kl is not None:
        yield f"at a KL of {figure(measured.kl)} nats"
        if measured.against_first is None or first.measured.kl is None:
            return
        if side := _side(measured.kl, first.measured.kl):
            where = "further" if side > 0 else "less far"
            yield f"{where} from the start than {first.name}: part of the difference may be distance"


def _side(one: Estimate, other: Estimate) -> int:
    """1 above, -1 below, 0 where the intervals meet or there are none."""
    if one.ci is None or other.ci is None:
        return 0
    return int(one.ci[0] > other.ci[1]) - int(one.ci[1] < other.ci[0])


def figure(estimate: Estimate) -> str:
    """A mean in three digits, without those far below what its interval knows."""
    mean, half = estimate.mean, 0.0 if estimate.ci is None else (estimate.ci[1] - estimate.ci[0]) / 2
    if half > 0:
        mean = round(mean, 1 - math.floor(math.log10(half)))
    return f"{mean + 0.0:.3g}"  # + 0.0: never -0


def is_decided(comparison: Comparison) -> bool:
    """Whether its interval lies on one side of zero."""
    interval = comparison.difference_ci
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def difference(comparison: Comparison) -> str:
    """How far ahead or behind, in words, as far as the interval tells."""
    if comparison.difference_ci is None:
        return f"{comparison.difference:+.3g} (one prompt tells nothing) against"
    low, high = comparison.difference_ci
    interval = f"{comparison.difference:+.3g} (95 % CI {low:+.3g} to {high:+.3g})"
    if low > 0:
        return f"{interval} ahead of"
    return f"{interval} behind" if high < 0 else f"{interval}, not distinguishable from"


def doubts(name: str, steps: Sequence[Measured], metric: str = REWARD) -> list[str]:
    """What says that rewards are not to be believed, most of all one that rises from a measurement to the next.

    Gao et al., arXiv:2210.10760: the score of a proxy goes on rising where true quality falls, the further the policy
    is from its reference. Rising reward is doubted where held-out implicit accuracy or the share of finished responses
    falls meanwhile, or the policy is far away.

    Args:
        name: Of the policy.
        steps: The start, then the policy after each round.
        metric: What policies are compared by; a reward that rises while it falls is doubted most.
    """
    found: list[str] = []
    if steps[-1].finished_ratio < _CUT_OFF:
        found.append(
            f"{1 - steps[-1].finished_ratio:.0%} of its responses are cut off, so that their rewards are those of "
            "beginnings: raise evaluation.sampling.max_new_tokens"
        )
    for before, after in pairwise(steps):
        found += over_optimised(before, after, metric)
    return [f"{name}: {doubt}" for doubt in found]


def over_optimised(before: Measured, after: Measured, metric: str = REWARD) -> list[str]:
    """What says that a reward that rose is not to be believed; see `doubts`."""
    found: list[str] = []
    if after.reward.mean > before.reward.mean:
        where = f"the reward rose from {before.reward.mean:.3g} to {after.reward.mean:.3g}, and"
        if _side(after.score(metric), before.score(metric)) < 0:
            found.append(
                f"{where} {metric} fell from {before.score(metric).mean:.3g} to {after.score(metric).mean:.3g}: the "
                "reward model is over-optimised"
            )
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
