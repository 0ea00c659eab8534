"""The tables of iterated training: its measures were fixed before it was run."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from bench.methods import markdown
from bench.methods.analysis import Estimate, Points, mean_over, paired, select
from bench.methods.plan import LOOP_BETAS, LOOP_SEEDS, POOR_REWARD_MODEL, RATE, RLOO_BETAS, ROUNDS
from bench.methods.results import Record

LEVELS = (2.0, 3.0, 4.0, 5.0)
"""KL in nats."""
GRAMMATICAL = 0.9
"""Least share of grammatical responses of a policy whose reward counts by the second measure."""
BASELINE = "rm_soft"
ERRORS_WANTED = 3.0
SETTINGS: Mapping[str, tuple[str, str]] = {
    "high": ("high", "words"),
    f"high, {POOR_REWARD_MODEL}": ("high", POOR_REWARD_MODEL),
    "low": ("low", "words"),
    "medium": ("medium", "words"),
}
"""Tier and reward model."""


class Policy(NamedTuple):
    """Where a trained policy stands."""

    kl: float
    reward: float
    grammatical: float


Curve = Mapping[float, Policy]
"""The policies of an arm in a world, by beta."""


def tables(records: Sequence[Record]) -> Mapping[str, str]:
    """Every table by its name in the document."""
    return {"loop-verdict": verdict(records), "loop-policies": policies(records)}


def verdict(records: Sequence[Record]) -> str:
    """Each arm against `rm_soft`, in each setting, by all measures; open until all worlds are there."""
    rows = []
    for setting, arms in _settings(records):
        for arm, curves in arms.items():
            baseline = arms.get(BASELINE, {})
            worlds = sorted(curves.keys() & baseline.keys())
            if arm == BASELINE or not worlds:
                continue
            at_equal_kl = mean_over(_points(curves), LEVELS)(_points(baseline))
            best, left_out = _paired(curves, baseline, best_grammatical)
            between, _ = _paired(curves, baseline, best_grammatical_between)
            ahead = [name for name, each in (("(a)", at_equal_kl), ("(b)", best)) if is_ahead(each)]
            cells = [markdown.errors(each) for each in (at_equal_kl, best, between)]
            cells[1] += f", {left_out} left out" if left_out else ""
            decided = " and ".join(ahead) or "no" if len(worlds) == len(LOOP_SEEDS) else "open"
            rows.append((setting, arm, len(worlds), *cells, decided))
    header = ("setting", "arm", "worlds", "(a) at equal KL", "(b) at 90 % grammatical", "(b'), between betas", "ahead")
    return markdown.table(header, rows)


def policies(records: Sequence[Record]) -> str:
    """Where the policies stand, as means over the worlds."""
    rows = []
    for setting, arms in _settings(records):
        for arm, curves in arms.items():
            for beta in sorted(next(iter(curves.values()))):
                at = [curve[beta] for curve in curves.values()]
                means = [Estimate.of(getattr(each, name) for each in at).mean for name in Policy._fields]
                places = zip(means, (1, 2, 2), strict=True)
                rows.append((setting, arm, f"{beta:g}", len(at), *(markdown.number(*each) for each in places)))
    return markdown.table(("setting", "arm", "beta", "worlds", "KL", "reward", "grammatical"), rows)


def is_ahead(estimate: Estimate) -> bool:
    """By more than three standard errors."""
    return estimate.errors_away > ERRORS_WANTED


def best_grammatical(curve: Curve) -> float | None:
    """Highest reward among policies that are grammatical enough; None where none is."""
    return max((each.reward for each in curve.values() if each.grammatical >= GRAMMATICAL), default=None)


def best_grammatical_between(curve: Curve) -> float | None:
    """The same along straight lines in sqrt(KL) between neighbouring policies."""
    found = [best_grammatical(curve)]
    for one, other in pairwise(sorted(curve.values())):
        if (one.grammatical >= GRAMMATICAL) != (other.grammatical >= GRAMMATICAL):
            part = (GRAMMATICAL - one.grammatical) / (other.grammatical - one.grammatical)
            found.append(one.reward + part * (other.reward - one.reward))
    return max((each for each in found if each is not None), default=None)


def _paired(
    curves: Mapping[int, Curve], baseline: Mapping[int, Curve], value: Callable[[Curve], float | None]
) -> tuple[Estimate, int]:
    """The difference over the worlds in which both have a value, and how many have not."""
    own, others = (
        {seed: found for seed, curve in each.items() if (found := value(curve)) is not None}
        for each in (curves, baseline)
    )
    return paired(own, others), len(curves.keys() & baseline.keys()) - len(own.keys() & others.keys())


def _points(curves: Mapping[int, Curve]) -> Points:
    return {seed: {beta: at[:2] for beta, at in curve.items()} for seed, curve in curves.items()}


def _settings(records: Sequence[Record]) -> Iterator[tuple[str, Mapping[str, Mapping[int, Curve]]]]:
    """By setting, by arm: the worlds in which all betas of the arm were run."""
    for name, (tier, reward_model) in SETTINGS.items():
        found: dict[str, dict[int, dict[float, Policy]]] = defaultdict(lambda: defaultdict(dict))
        for record in select(
            records,
            kind="loop",
            tier=tier,
            form="bounded",
            reward_model=reward_model,
            learning_rate=RATE,
            rounds=ROUNDS,
        ):
            job, values = record["job"], record["values"]
            if job["seed"] in LOOP_SEEDS and math.isfinite(values.get("kl", math.nan)):
                at = Policy(values["kl"], values["reward"], values["grammatical"])
                found[job["arm"]][job["seed"]][job["beta"]] = at
        whole = {
            arm: {seed: curve for seed, curve in curves.items() if set(_betas(arm)) <= set(curve)}
            for arm, curves in found.items()
        }
        yield name, {arm: curves for arm, curves in whole.items() if curves}


def _betas(arm: str) -> Sequence[float]:
    return RLOO_BETAS if arm == "rloo" else LOOP_BETAS
