"""Plots of an evaluation next to its baselines. matplotlib is imported only here, and only when plots are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madpo.evaluation.report import Estimate
from madpo.jobs.evaluation import REWARD_METRIC
from madpo_evaluator.generations import Evaluation
from madpo_evaluator.statistics import estimate_mean
from madpo_evaluator.summary import estimate_kl

_BINS = 30
_LABELS = {REWARD_METRIC: "reward (reward-model logits)"}


def write_plots(directory: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write `metrics.png`, `response_tokens.png` and `frontier.png`; the first evaluation is ours, then baselines.

    `metrics.png` needs a metric, `frontier.png` also KL.
    """
    ours = evaluations[0]
    first = ours.temperatures[0]
    if ours.metric_names:
        figure, axes = _figure(len(ours.metric_names))
        for axis, name in zip(axes, ours.metric_names, strict=True):
            having = [each for each in evaluations if name in each.metric_names]
            _histogram(axis, having, [each.metric(first, name) for each in having], label=_LABELS.get(name, name))
        _save(figure, axes, directory / "metrics.png", title=f"Responses at temperature {first:g}")
    figure, axes = _figure(1)
    tokens = [each.values(first, lambda generation: generation.tokens) for each in evaluations]
    _histogram(axes[0], evaluations, tokens, label="response length (tokens)")
    _save(figure, axes, directory / "response_tokens.png", title=f"Response length at temperature {first:g}")
    if ours.metric_names and ours.has_kl:
        name = REWARD_METRIC if REWARD_METRIC in ours.metric_names else ours.metric_names[0]
        figure, axes = _figure(1)
        _frontier(axes[0], [each for each in evaluations if each.has_kl and name in each.metric_names], name)
        _save(figure, axes, directory / "frontier.png", title="Mean with 95% intervals")


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    # The object interface draws with Agg and keeps no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _save(figure: Any, axes: Sequence[Any], path: Path, *, title: str) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _histogram(
    axis: Any, evaluations: Sequence[Evaluation], samples: Sequence[NDArray[np.float64]], *, label: str
) -> None:
    bins = _bin_edges(np.concatenate(samples, axis=None))
    for each, values, color in zip(evaluations, samples, _colors(len(samples)), strict=True):
        share = np.full(values.size, 1 / values.size)
        axis.hist(values.ravel(), bins=bins, weights=share, histtype="stepfilled", alpha=0.25, color=color)
        axis.axvline(values.mean(), color=color, label=f"{_name(each)}: mean {values.mean():.3g}")
    axis.set_xlabel(label)
    axis.set_ylabel("share of responses")


def _bin_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """About 30 bins; whole numbers get bins around whole numbers, or the bars would beat against them."""
    if np.any(values != np.round(values)):
        return np.histogram_bin_edges(values, bins=_BINS)
    width = max(1.0, np.ceil((values.max() - values.min()) / _BINS))
    return np.arange(values.min() - 0.5, values.max() + width, width)


def _frontier(axis: Any, evaluations: Sequence[Evaluation], name: str) -> None:
    for each, color in zip(evaluations, _colors(len(evaluations)), strict=True):
        kl = [estimate_kl(each, temperature) for temperature in each.temperatures]
        metric = [estimate_mean(each.metric(temperature, name)) for temperature in each.temperatures]
        known = [estimate for estimate in kl if estimate is not None]
        x, y = [estimate.mean for estimate in known], [estimate.mean for estimate in metric]
        axis.errorbar(
            x, y, xerr=_half_widths(known), yerr=_half_widths(metric), marker="o", capsize=2, color=color,
            label=_name(each),
        )  # fmt: skip
        if len(x) > 1:
            for point in zip(each.temperatures, x, y, strict=True):
                axis.annotate(f"T={point[0]:g}", point[1:], xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel("KL to the reference (nats per response)")
    axis.set_ylabel(f"mean {_LABELS.get(name, name)}")


def _half_widths(estimates: Sequence[Estimate]) -> list[float]:
    return [(estimate.ci[1] - estimate.ci[0]) / 2 if estimate.ci else 0.0 for estimate in estimates]


def _name(evaluation: Evaluation) -> str:
    return evaluation.name or "this model"


def _colors(count: int) -> list[str]:
    return [f"C{index % 10}" for index in range(count)]
