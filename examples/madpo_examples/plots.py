"""The demos' three pictures."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from madpo_examples.comparison import FrontierPoint, PolicyRow

_PANELS = {"loss": "loss", "rewards/implicit_margin": "implicit margin", "rewards/accuracy": "accuracy"}
_SMOOTHING_STEPS = 8
_COLORS = {"dpo": "C0", "madpo": "C1"}


def plot_margins(ledger: bytes, path: Path) -> None:
    """Draw how many pairs had which reward margin, and the weight each of them was given.

    Args:
        ledger: The Parquet file a policy job leaves, one row a pair and epoch. Every epoch has the same margins, so one
            is shown.
        path: PNG to write.
    """
    table = pq.read_table(io.BytesIO(ledger), columns=["epoch", "reward_margin", "weight"])
    # A pair that was trained neutrally has no margin.
    table = table.filter((pc.field("epoch") == pc.min(table["epoch"])) & pc.field("reward_margin").is_valid())
    margins, weights = (table[name].to_numpy() for name in ("reward_margin", "weight"))
    figure = Figure(figsize=(7, 4), layout="constrained")
    counts = figure.subplots()
    counts.hist(margins, bins=60, color="0.8")
    counts.set(xlabel="reward margin, chosen minus rejected (reward-model logits)", ylabel="pairs")
    curve = counts.twinx()
    order = np.argsort(margins)
    curve.plot(margins[order], weights[order], color="C1", linewidth=2)
    curve.axhline(1.0, color="C1", linewidth=0.8, linestyle=":")
    curve.set_ylabel("MADPO weight of the pair", color="C1")
    curve.set_ylim(bottom=0.0)
    share = np.mean(margins < 0)
    counts.set_title(f"The reward model contradicts {share:.0%} of the labels", fontsize="medium")
    figure.savefig(path, dpi=150)


def plot_training(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the training curves of several policies over each other; metrics are those of each job by policy name."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name, rows in metrics.items():
            steps = np.array([row["step"] for row in rows])
            values = np.array([row[key] for row in rows])
            axes.plot(steps, values, color=_color(name), alpha=0.25, linewidth=0.8)
            axes.plot(*_smooth(steps, values), color=_color(name), label=name)
        axes.set(xlabel="step", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_frontier(
    rows: Sequence[PolicyRow], checkpoints: Mapping[str, Sequence[FrontierPoint]], path: Path, *, reward: str
) -> None:
    """Draw reward against KL with 95 % intervals: each policy's way from the reference over its checkpoints.

    Args:
        rows: The reference policy first, then the trained ones.
        checkpoints: Of each trained policy, those before its last, by step.
        path: PNG to write.
        reward: What the reward is called.
    """
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes: Axes = figure.subplots()
    reference, *policies = rows
    _draw_point(axes, reference, label=reference.name, color=_color(reference.name))
    for row in policies:
        color, points = _color(row.name), checkpoints.get(row.name, ())
        way: list[PolicyRow | FrontierPoint] = [reference, *points, row]
        axes.plot([each.kl.mean for each in way], [each.reward.mean for each in way], color=color, linewidth=1)
        for point in points:
            _draw_point(axes, point, color=color, markersize=4)
            axes.annotate(
                f"step {point.step}",
                (point.kl.mean, point.reward.mean),
                xytext=(5, -10),
                textcoords="offset points",
                fontsize="x-small",
                color=color,
            )
        _draw_point(axes, row, label=row.name, color=color)
    axes.set(xlabel=f"KL to {reference.name} (nats a response)", ylabel=f"mean {reward}")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def _draw_point(axes: Axes, point: PolicyRow | FrontierPoint, **style: Any) -> None:
    axes.errorbar(
        point.kl.mean,
        point.reward.mean,
        xerr=_error(point.kl.mean, point.kl.ci),
        yerr=_error(point.reward.mean, point.reward.ci),
        marker="o",
        capsize=3,
        linestyle="none",
        **style,
    )


def _color(name: str) -> str:
    return _COLORS.get(name, "0.4")


def _smooth(steps: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    window = min(_SMOOTHING_STEPS, len(values))
    return np.convolve(steps, np.ones(window) / window, mode="valid"), np.convolve(
        values, np.ones(window) / window, mode="valid"
    )


def _error(mean: float, ci: tuple[float, float]) -> list[list[float]]:
    return [[max(mean - ci[0], 0.0)], [max(ci[1] - mean, 0.0)]]
