"""What a training did, as curves. matplotlib is imported only here, and only when they are drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PANELS: Mapping[str, tuple[str, ...]] = {
    "loss (nats)": ("loss",),
    "accuracy on pairs": ("rewards/accuracy",),
    "implicit margin (nats times beta)": ("rewards/implicit_margin",),
    "implicit reward (nats times beta)": ("rewards/chosen", "rewards/rejected"),
    "reward margin (logits)": ("reward_margin/mean",),
    "weight of a pair": ("weight/mean",),
    "policy minus reference (nats per response)": ("log_ratio/mean",),
    "learning rate": ("learning_rate",),
    "norm of the gradient before clipping": ("grad_norm",),
}
"""What is drawn, by what its axis says; a figure on held-out rows (`eval/...`) stands beside that on training rows."""

_HELD_OUT_NAMES = {"rewards/accuracy": ("accuracy",), "reward_margin/mean": ("margin_mean",)}
"""What a reward model's held-out figures are called beside the names of training."""

_COLUMNS = 3
_WIDTH, _HEIGHT = 4.6, 3.2
"""Of a panel, in inches."""
_MARGINS = (0.85, 0.15, 0.5, 0.5)
"""Left, right, below and above its axes, for the labels."""


def write_curves(path: Path, rows: Sequence[Mapping[str, Any]], *, initial_eval: Mapping[str, float]) -> None:
    """Draw the figures of a training over its steps.

    Args:
        path: Of the image; its ending says the format.
        rows: As in `metrics.jsonl`.
        initial_eval: Figures on the held-out rows before the first step.
    """
    # The object interface draws with Agg and keeps no global state.
    from matplotlib.figure import Figure

    before = {"step": 0, **{f"eval/{name}": value for name, value in initial_eval.items()}}
    rows = [before, *rows]
    panels = {label: names for label, names in _PANELS.items() if any(_points(rows, name) for name in names)}
    if not panels:
        return
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * lines))
    for place, (label, names) in enumerate(panels.items()):
        axis = figure.add_axes(_box(*divmod(place, columns), lines=lines, columns=columns))
        for name in names:
            _draw(axis, rows, name, alone=len(names) == 1)
        axis.set_title(label, fontsize=10, y=1.0, pad=15)  # above the power of ten that an axis may begin with
        axis.set_xlabel("step")
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _box(line: int, column: int, *, lines: int, columns: int) -> tuple[float, float, float, float]:
    """Of a panel's axes in the figure: left, bottom, width, height, as shares of it.

    Given, since a layout that fits the labels draws everything twice more to find them.
    """
    left, right, bottom, top = _MARGINS
    width, height = _WIDTH * columns, _HEIGHT * lines
    return (
        (column * _WIDTH + left) / width,
        ((lines - 1 - line) * _HEIGHT + bottom) / height,
        (_WIDTH - left - right) / width,
        (_HEIGHT - bottom - top) / height,
    )


def _draw(axis: Any, rows: Sequence[Mapping[str, Any]], name: str, *, alone: bool) -> None:
    """A figure's line on the training rows, and its marks on the held-out ones."""
    short = "" if alone else f"{name.rpartition('/')[2]}, "
    if training := _points(rows, name):
        axis.plot(*zip(*training, strict=True), linewidth=1.2, label=f"{short}training rows")
    names = (name, *_HELD_OUT_NAMES.get(name, ()))
    if held_out := [point for each in names for point in _points(rows, f"eval/{each}")]:
        axis.plot(*zip(*held_out, strict=True), marker="o", markersize=4, label=f"{short}held-out rows")


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]
