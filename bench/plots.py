"""Pictures of a result."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

OURS, THEIRS = "C1", "0.65"


def plot_training(models: Mapping[str, Any], path: Path) -> None:
    """Pairs per CPU-second and peak memory of every variant, bars at the median with the range of rounds."""
    figure = Figure(figsize=(8, 2.2 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for row, (model, entry) in zip(grid, models.items(), strict=True):
        pairs = entry["task"]["batch"] * entry["task"]["steps"]
        rates = {
            name: [pairs / each["cpu_s"] for each in variant["rounds"]] for name, variant in entry["variants"].items()
        }
        peaks = {
            name: [each["activation_bytes"] / 2**20 for each in variant["rounds"]]
            for name, variant in entry["variants"].items()
        }
        _bars(row[0], rates, f"{model}: pairs per CPU-second")
        _bars(row[1], peaks, f"{model}: activation peak, MiB")
    figure.savefig(path, dpi=90)


def plot_scoring(entry: Mapping[str, Any], path: Path) -> None:
    """Pairs per CPU-second of every way."""
    rates = _rates(entry, entry["task"]["pairs"])
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    _bars(figure.subplots(), rates, "scoring: pairs per CPU-second")
    figure.savefig(path, dpi=90)


def plot_growth(curves: Mapping[str, Any], path: Path) -> None:
    """Time and memory in log-log, one panel a curve."""
    figure = Figure(figsize=(8, 2.4 * ((len(curves) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(curves) + 1) // 2, 2, squeeze=False).flat
    for panel, (curve, points) in zip(panels, curves.items(), strict=False):
        x = [point[curve] for point in points]
        panel.plot(x, [point["cpu_s"] for point in points], "o-", color=OURS, label="CPU-seconds")
        panel.set(xscale="log", yscale="log", xlabel=curve, ylabel="CPU-seconds")
        panel.set_xticks(x, [f"{size:,.0f}" for size in x], fontsize="small", rotation=20)
        other = panel.twinx()
        other.plot(x, [point["activation_bytes"] / 2**20 for point in points], "s--", color=THEIRS)
        other.set(yscale="log", ylabel="memory, MiB (dashed)")
        panel.xaxis.set_minor_locator(NullLocator())
        for axis in (panel.yaxis, other.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
    figure.savefig(path, dpi=90)


def _rates(entry: Mapping[str, Any], pairs: int) -> dict[str, list[float]]:
    return {name: [pairs / each["cpu_s"] for each in variant["rounds"]] for name, variant in entry["variants"].items()}


def _bars(panel: Axes, values: Mapping[str, list[float]], title: str) -> None:
    names = list(values)
    middle = [median(values[name]) for name in names]
    spans = [[mid - min(values[name]), max(values[name]) - mid] for name, mid in zip(names, middle, strict=True)]
    colors = [THEIRS if name.startswith(("trl", "infinity", "pipeline")) else OURS for name in names]
    panel.barh(names, middle, xerr=list(zip(*spans, strict=True)), color=colors)
    panel.invert_yaxis()
    panel.set_title(title, fontsize=10)
