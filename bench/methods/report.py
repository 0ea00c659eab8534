"""Rewrite the tables and plots of docs/benchmark.md from the records: `python -m bench.methods.report`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.methods.analysis import Points, bandit_points, mean_over, select
from bench.methods.plan import BANDIT_MARGIN_ARMS, BANDIT_OWN, TIERS, UNBOUNDED_BETAS
from bench.methods.results import Record, read
from bench.methods.run import RESULTS
from bench.methods.tables import (
    BANDIT_LEVELS,
    bandit_arms,
    dpo_implicit_accuracy,
    frontier_points,
    swept,
    tables,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmark.md"
IMAGES = DOCUMENT.parent / "images"

_BLOCK = r"(<!-- begin {name} -->\n).*?(\n<!-- end {name} -->)"
_COLORS = {
    "dpo": "0.3",
    "ipo": "C7",
    "madpo": "C0",
    "madpo_tau2": "C9",
    "rm_soft": "C2",
    "posterior_0.25": "C3",
    "label_mix_0.25": "C1",
}


def fill(text: str, records: Sequence[Record]) -> str:
    """The document with its tables made anew."""
    for name, table in tables(records).items():
        pattern = re.compile(_BLOCK.format(name=re.escape(name)), re.DOTALL)
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def plot(records: Sequence[Record], directory: Path) -> None:
    """Draw every frontier that was run."""
    directory.mkdir(parents=True, exist_ok=True)
    panels = {tier: arms for tier in TIERS if (arms := frontier_points(records, tier))}
    if arms := swept(records, "high", "unbounded", "words", UNBOUNDED_BETAS):
        panels["high, unbounded rewards"] = arms
    if panels:
        _draw_frontiers(panels, directory / "frontier-toy-reviews.png", "toy reviews, ")
    if arms := bandit_arms(records, "high", "bounded"):
        _draw_gains(records, arms, directory / "gain-by-reward-model.png")
    bandits = {
        each["job"]["tier"]: bandit_points(each)
        for each in select(records, kind="bandit", form="bounded", reward_model=BANDIT_OWN)
    }
    if bandits:
        _draw_frontiers(bandits, directory / "frontier-bandit.png", "bandit, ")


def _draw_frontiers(panels: Mapping[str, Mapping[str, Points]], path: Path, title: str) -> None:
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (name, arms) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for arm, color in _COLORS.items():
            if arm in arms:
                kl, reward, error = _mean_curve(arms[arm])
                axes.errorbar(kl, reward, yerr=error, color=color, marker="o", markersize=3, capsize=2, label=arm)
        axes.set(xlabel="KL to the reference (nats a response)", ylabel="true reward", title=title + name)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=80)


def _draw_gains(records: Sequence[Record], arms: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """Gain over DPO at equal KL against the reward model's accuracy, and where DPO's own implicit reward stands."""
    accuracy = {
        each["job"]["reward_model"]: each["values"]["reward_model"]["accuracy"]
        for each in select(records, kind="bandit", tier="high", form="bounded")
    }
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for arm in BANDIT_MARGIN_ARMS:
        gains = [mean_over(each[arm], BANDIT_LEVELS)(each["dpo"]) for each in arms.values()]
        axes.errorbar(
            [accuracy[name] for name in arms],
            [gain.mean for gain in gains],
            yerr=[gain.half_width for gain in gains],
            color=_COLORS[arm],
            marker="o",
            markersize=3,
            capsize=2,
            label=arm,
        )
    for name in arms:
        axes.annotate(name, (accuracy[name], 0.34), rotation=90, ha="center", fontsize="x-small", color="0.4")
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    own = dpo_implicit_accuracy(records)
    if own is not None:
        axes.axvline(own, color="0.3", linestyle=":", label="DPO's own implicit reward")
    axes.set(
        xlabel="accuracy on held-out pairs, as labelled", ylabel="true reward minus DPO, at equal KL", ylim=(-1, 0.65)
    )
    axes.legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=80)


def _mean_curve(curves: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    betas = sorted(next(iter(curves.values())))
    at = np.array([[curve[beta] for beta in betas] for curve in curves.values()])
    mean = at.mean(0)
    error = at[..., 1].std(0, ddof=1) / np.sqrt(len(at)) if len(at) > 1 else np.zeros(len(betas))
    return mean[:, 0], mean[:, 1], error


def main() -> None:
    records = read(RESULTS)
    DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8"), records), encoding="utf-8")
    plot(records, IMAGES)


if __name__ == "__main__":
    main()
