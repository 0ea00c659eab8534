"""The tables of docs/benchmark.md, as Markdown, from the records alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.methods import loop_tables, markdown
from bench.methods.analysis import (
    Estimate,
    Points,
    bandit_points,
    by_seed,
    mean_over,
    paired,
    points,
    rewards_at,
    select,
)
from bench.methods.plan import (
    BANDIT_MARGIN_ARMS,
    BANDIT_OWN,
    EPOCHS,
    FRONTIER_BETAS,
    MAIN_ARMS,
    MAIN_BETA,
    MARGIN_ARMS,
    PARTS,
    RATE,
    REWARD_MODELS,
    SECOND_RATE,
    SEEDS,
    TIERS,
    UNBOUNDED_BETAS,
    jobs,
)
from bench.methods.results import Record, done, identity, key
from bench.methods.toy import RewardForm, Tier

LEVELS = (2.0, 3.0, 4.0, 5.0)
"""KL in nats at which the toy-review frontiers are compared."""
SECOND_RATE_LEVELS = (0.5, 0.75, 1.0)
"""At half the learning rate no beta leads as far."""
BANDIT_LEVELS = (1.0, 1.5, 2.0, 2.5)
BASELINES = ("dpo", "madpo", "rm_soft")
ERRORS_WANTED, SEEDS_WANTED = 3.0, 4

ARM_OF: Mapping[str, Mapping[str, Any]] = {"dpo_half_beta": {"arm": "dpo", "beta": MAIN_BETA / 2}}
"""Where its runs are found."""

PAPER: Mapping[str, Mapping[str, float]] = {
    "dpo": {"high": 1.62, "medium": 1.71, "low": 1.48},
    "ipo": {"high": 0.35, "medium": 0.31, "low": 0.10},
    "beta_dpo": {"high": 1.67, "medium": 1.84, "low": 1.76},
    "madpo": {"high": 2.08, "medium": 2.15, "low": 1.75},
}
"""Mean reward by tier in arXiv:2510.05342v1, one seed a cell; MADPO at our c_max = 2, read off its plot to 0.01."""


def tables(records: Sequence[Record]) -> Mapping[str, str]:
    """Every table by its name in the document."""
    return {
        "progress": progress(records),
        **loop_tables.tables(records),
        "verdict": verdict(records),
        **{f"main-{tier}": main(records, tier) for tier in TIERS},
        **{f"frontier-{tier}": frontier(records, tier) for tier in TIERS},
        "frontier-high-second-rate": _frontier(frontier_points(records, "high", SECOND_RATE), SECOND_RATE_LEVELS),
        "reward-models": reward_models(records),
        "unbounded": unbounded(records),
        **{f"bandit-{tier}": bandit(records, tier, "bounded") for tier in TIERS},
        "bandit-reward-models": bandit_reward_models(records),
        "bandit-unbounded": bandit(records, "high", "unbounded"),
    }


def progress(records: Sequence[Record]) -> str:
    """How much of the plan the records hold."""
    finished = done(records)
    rows = []
    for part in PARTS:
        wanted = [key(identity(job)) for job in jobs(part)]
        rows.append((f"`{part}`", len(wanted), sum(each in finished for each in wanted)))
    return markdown.table(("part", "jobs planned", "jobs in these results"), rows)


def main(records: Sequence[Record], tier: Tier) -> str:
    """All methods at one beta, beside the paper's numbers, for each learning rate that was run."""
    chosen = select(records, kind="toy", tier=tier, form="bounded", reward_model="words", epochs=EPOCHS)
    rates = sorted({each["job"]["learning_rate"] for each in chosen})
    rows = []
    for rate in rates:
        at_rate = select(chosen, learning_rate=rate)
        baseline = by_seed(select(at_rate, arm="dpo", beta=MAIN_BETA), "reward")
        for arm in MAIN_ARMS:
            own = select(at_rate, **ARM_OF.get(arm, {"arm": arm, "beta": MAIN_BETA}))
            rewards = by_seed(own, "reward")
            if rewards:
                difference = "0" if arm == "dpo" else markdown.interval(paired(rewards, baseline))
                shares = [
                    markdown.number(Estimate.of(by_seed(own, name).values()).mean, places)
                    for name, places in (("kl", 2), ("grammatical", 2))
                ]
                published = PAPER.get(arm, {}).get(tier)
                rows.append(
                    (
                        f"{rate:g}",
                        arm,
                        len(rewards),
                        markdown.number(Estimate.of(rewards.values()).mean, 3),
                        difference,
                        *shares,
                        "" if published is None else f"{published:.2f}",
                    )
                )
    header = ("lr", "method", "seeds", "reward", "minus DPO, 95 % interval", "KL", "grammatical", "paper")
    return markdown.table(header, rows)


def frontier(records: Sequence[Record], tier: Tier) -> str:
    """Differences at equal KL on one tier."""
    return _frontier(frontier_points(records, tier), LEVELS)


def unbounded(records: Sequence[Record]) -> str:
    """Differences at equal KL where margins pass tau."""
    return _frontier(swept(records, "high", "unbounded", "words", UNBOUNDED_BETAS), LEVELS)


def bandit(records: Sequence[Record], tier: Tier, form: RewardForm) -> str:
    """Differences at equal exact KL in the bandit."""
    arms = bandit_arms(records, tier, form).get(BANDIT_OWN)
    return _frontier(arms, BANDIT_LEVELS) if arms else markdown.NOT_RUN


def bandit_arms(records: Sequence[Record], tier: Tier, form: RewardForm) -> Mapping[str, Mapping[str, Points]]:
    """By reward model, where the arms stand; DPO reads none, so its runs are the same beside all of them."""
    found = {each["job"]["reward_model"]: each for each in select(records, kind="bandit", tier=tier, form=form)}
    if BANDIT_OWN not in found:
        return {}
    baseline = {"dpo": bandit_points(found[BANDIT_OWN])["dpo"]}
    return {name: baseline | bandit_points(found[name]) for name in sorted(found, key=_pairs_of)}


def frontier_points(records: Sequence[Record], tier: Tier, learning_rate: float = RATE) -> Mapping[str, Points]:
    """The swept arms of a tier."""
    return swept(records, tier, "bounded", "words", FRONTIER_BETAS, learning_rate)


def reward_model_points(records: Sequence[Record], reward_model: str) -> Mapping[str, Points]:
    """The arms of the high tier with another reward model; DPO reads none, so its runs are the same beside all."""
    arms = swept(records, "high", "bounded", reward_model, FRONTIER_BETAS)
    return {"dpo": frontier_points(records, "high").get("dpo", {}), **arms} if arms else {}


def swept(
    records: Sequence[Record],
    tier: Tier,
    form: RewardForm,
    reward_model: str,
    betas: Mapping[str, Sequence[float]],
    learning_rate: float = RATE,
) -> Mapping[str, Points]:
    """Where the arms of a sweep stand; only seeds that have all betas of an arm."""
    chosen = [
        each
        for each in select(
            records,
            kind="toy",
            tier=tier,
            form=form,
            reward_model=reward_model,
            learning_rate=learning_rate,
            epochs=EPOCHS,
        )
        if each["job"]["seed"] in SEEDS
    ]
    return {
        arm: whole
        for arm, curves in points(chosen).items()
        if arm in betas and (whole := {seed: curve for seed, curve in curves.items() if set(betas[arm]) <= set(curve)})
    }


def verdict(records: Sequence[Record]) -> str:
    """Which arm stands ahead of DPO, MADPO and rm_soft at equal KL, in each setting."""
    toys = {f"toy reviews, {tier}": frontier_points(records, tier) for tier in TIERS}
    toys |= {f"toy reviews, high, {name}": reward_model_points(records, name) for name in REWARD_MODELS}
    toys["toy reviews, high, unbounded"] = swept(records, "high", "unbounded", "words", UNBOUNDED_BETAS)
    settings = [(name, arms, LEVELS) for name, arms in toys.items()]
    slow = frontier_points(records, "high", SECOND_RATE)
    settings.append((f"toy reviews, high, lr {SECOND_RATE:g}", slow, SECOND_RATE_LEVELS))
    for form in ("bounded", "unbounded"):
        for tier in TIERS:
            for reward_model, arms in bandit_arms(records, tier, form).items():
                unusual = [form] if form == "unbounded" else []
                unusual += [reward_model] if reward_model != BANDIT_OWN else []
                settings.append((", ".join(["bandit", tier, *unusual]), arms, BANDIT_LEVELS))
    rows = []
    for name, arms, levels in settings:
        for arm in arms:
            if arm == "dpo" or arm not in FRONTIER_BETAS or not all(each in arms for each in BASELINES):
                continue
            estimates = {each: mean_over(arms[arm], levels)(arms[each]) for each in BASELINES if each != arm}
            if all(estimate.seeds < 2 for estimate in estimates.values()):
                continue
            cells = [markdown.errors(estimates[each]) if each in estimates else "" for each in BASELINES]
            if arm in BASELINES:
                rows.append((name, arm, *cells, ""))
                continue
            whole = "**yes**" if all(map(_is_ahead, estimates.values())) else "no"
            ahead_at = [f"{level:g}" for level in levels if _leads(arms, arm, level)]
            rows.append((name, arm, *cells, f"{whole}; at KL {', '.join(ahead_at)}" if ahead_at else whole))
    header = ("setting", "method", "minus DPO", "minus MADPO", "minus rm_soft", "ahead of all three")
    return markdown.table(header, rows)


def _leads(arms: Mapping[str, Points], arm: str, level: float) -> bool:
    own = rewards_at(arms[arm], level)
    return all(_is_ahead(paired(own, rewards_at(arms[each], level))) for each in BASELINES)


def _is_ahead(estimate: Estimate) -> bool:
    return estimate.seeds >= SEEDS_WANTED and estimate.errors_away > ERRORS_WANTED


def reward_models(records: Sequence[Record]) -> str:
    """What the calibration report says of each reward model, beside what it brought at equal KL over DPO."""
    rows = []
    for name in ("words", *REWARD_MODELS):
        described = [
            each
            for each in select(records, kind="rewardmodel", tier="high", form="bounded", reward_model=name)
            if each["job"]["seed"] in SEEDS
        ]
        if not described:
            continue
        figures = [
            markdown.number(Estimate.of(by_seed(described, value).values()).mean, places)
            for value, places in (
                *(("accuracy", 3), ("ece", 3), ("temperature", 2), ("contradicted", 2)),
                *(("noiseless_accuracy", 3), ("correlation", 2)),
            )
        ]
        arms = reward_model_points(records, name)
        gains = [
            markdown.errors(mean_over(arms[arm], LEVELS)(arms["dpo"])) if arm in arms else "" for arm in MARGIN_ARMS
        ]
        rows.append((name, len(described), *figures, *gains))
    own = _implicit(records)
    if own:
        blank = [""] * (3 + 1 + len(MARGIN_ARMS))
        accuracy, noiseless = own
        rows.append(
            (
                "DPO's own implicit reward, at its best beta",
                accuracy.seeds,
                markdown.number(accuracy.mean, 3),
                *blank[:3],
                markdown.number(noiseless.mean, 3),
                *blank[3:],
            )
        )
    header = (
        *("reward model", "seeds", "accuracy", "ECE", "temperature", "contradicted", "accuracy, no noise"),
        *("correlation", *(f"{arm} minus DPO" for arm in MARGIN_ARMS)),
    )
    return markdown.table(header, rows)


def bandit_reward_models(records: Sequence[Record]) -> str:
    """The same in the bandit, where reward models may also know more than the policies' pairs, or everything."""
    found = {
        each["job"]["reward_model"]: each["values"]
        for each in select(records, kind="bandit", tier="high", form="bounded")
    }
    rows = []
    for name, arms in bandit_arms(records, "high", "bounded").items():
        figures = found[name]["reward_model"]
        described = [
            markdown.number(figures.get(value, math.nan), places)
            for value, places in (
                *(("accuracy", 3), ("ece", 3), ("temperature", 2), ("contradicted", 2)),
                ("noiseless_accuracy", 3),
            )
        ]
        gains = [markdown.errors(mean_over(arms[arm], BANDIT_LEVELS)(arms["dpo"])) for arm in BANDIT_MARGIN_ARMS]
        rows.append((name, *described, *gains))
    own = dpo_implicit_accuracy(records)
    if own is not None:
        rows.append(
            ("DPO's own implicit reward, at its best beta", markdown.number(own, 3), *[""] * (len(rows[0]) - 2))
        )
    header = (
        *("reward model", "accuracy", "ECE", "temperature", "contradicted", "accuracy, no noise"),
        *(f"{arm} minus DPO" for arm in BANDIT_MARGIN_ARMS),
    )
    return markdown.table(header, rows)


def dpo_implicit_accuracy(records: Sequence[Record]) -> float | None:
    """How the bandit's DPO policies order the validation pairs on the high tier, at the beta where they do it best."""
    chosen = select(records, kind="bandit", tier="high", form="bounded", reward_model=BANDIT_OWN)
    shares = [
        float(np.mean(setting["implicit_accuracy"]))
        for record in chosen
        for setting in record["values"]["settings"]
        if setting["arm"] == "dpo"
    ]
    return max(shares, default=None)


def _pairs_of(name: str) -> float:
    return math.inf if name == "truth" else float(name.removeprefix("mlp-"))


def _implicit(records: Sequence[Record]) -> tuple[Estimate, Estimate] | None:
    """How DPO's policy itself orders the held-out pairs: as labelled, and as the true reward does; at its best beta."""
    chosen = select(records, kind="toy", tier="high", form="bounded", arm="dpo", learning_rate=RATE, epochs=EPOCHS)
    names = ("implicit_accuracy", "implicit_accuracy_noiseless")
    figures = [
        (Estimate.of(by_seed(at_beta, names[0]).values()), Estimate.of(by_seed(at_beta, names[1]).values()))
        for beta in FRONTIER_BETAS["dpo"]
        if (at_beta := select(chosen, beta=beta))
    ]
    return max(figures, key=lambda pair: pair[0].mean, default=None)


def _frontier(arms: Mapping[str, Points], levels: Sequence[float]) -> str:
    if "dpo" not in arms:
        return markdown.NOT_RUN
    rows = []
    for arm, curves in arms.items():
        if arm == "dpo":
            rows.append((arm, *["0"] * (len(levels) + 1), "", "", _best(curves)))
            continue
        at_levels = [paired(rewards_at(curves, level), rewards_at(arms["dpo"], level)) for level in levels]
        means = [
            markdown.errors(mean_over(curves, levels)(arms[each])) if each != arm and each in arms else ""
            for each in BASELINES
        ]
        rows.append((arm, *(markdown.counted(each) for each in at_levels), *means, _best(curves)))
    header = (
        "method",
        *(f"minus DPO at KL {level:g}" for level in levels),
        *("mean, minus DPO", "mean, minus MADPO", "mean, minus rm_soft", "highest reward (KL)"),
    )
    return markdown.table(header, rows)


def _best(curves: Points) -> str:
    """Over the betas, of means over the seeds."""
    betas = set.intersection(*(set(curve) for curve in curves.values()))
    means = [np.mean([curve[beta] for curve in curves.values()], axis=0) for beta in betas]
    kl, reward = max(means, key=lambda at: at[1])
    return f"{reward:.2f} ({kl:.1f})"
