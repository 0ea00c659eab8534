"""A calibration report as a picture. matplotlib is imported only here, and only when one is drawn."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from madpo.calibration.report import CalibrationReport, HeldOut

_WIDTH, _HEIGHT = 5.5, 4.2
"""Of a panel, in inches."""
_MARGINS = (0.75, 0.75, 0.55, 0.65)
"""Left, right, below and above its axes, for the labels: a layout that fits them draws everything twice more."""


def write_plot(report: CalibrationReport, path: Path) -> None:
    """Draw what a report holds as PNG: reliability, and the weight curve over the margin histogram."""
    path.write_bytes(_png(report.to_json()))


@lru_cache(maxsize=1)
def _png(report_json: str) -> bytes:
    """Drawn once, though a training leaves it before its first step, with each checkpoint and at its end."""
    # The object interface draws with Agg and keeps no global state.
    from matplotlib.figure import Figure

    report = CalibrationReport.model_validate_json(report_json)
    panels = 1 if report.held_out is None else 2
    figure = Figure(figsize=(_WIDTH * panels, _HEIGHT))
    left, right, bottom, top = _MARGINS
    axes = [
        figure.add_axes(
            (
                (panel + left / _WIDTH) / panels,
                bottom / _HEIGHT,
                (1 - (left + right) / _WIDTH) / panels,
                1 - (bottom + top) / _HEIGHT,
            )
        )
        for panel in range(panels)
    ]
    if report.held_out is not None:
        _reliability(axes[0], report.held_out)
    _weights(axes[-1], report)
    figure.suptitle(report.headline(), fontsize=9)
    # No version or date in the file: the same report gives the same bytes.
    png = BytesIO()
    figure.savefig(png, dpi=120, metadata={"Software": None})
    return png.getvalue()


def _reliability(axis: Any, held_out: HeldOut) -> None:
    confidence = [each.confidence for each in held_out.reliability]
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1, label="calibrated")
    axis.plot(confidence, [each.accuracy for each in held_out.reliability], marker="o", color="C0", label="measured")
    for each in held_out.reliability:
        axis.annotate(
            str(each.pairs), (each.confidence, each.accuracy), xytext=(4, -10), textcoords="offset points", fontsize=7
        )
    axis.set_xlim(0.49, 1.01)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("confidence, sigmoid(|margin|)")
    axis.set_ylabel("share ordered as labelled")
    axis.set_title(f"{held_out.pairs} held-out pairs, ECE {held_out.ece_used:.3f} as used", fontsize=10, y=1.0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")


def _weights(axis: Any, report: CalibrationReport) -> None:
    margins, weights = report.margins, report.weights
    widths = [right - left for left, right in zip(margins.edges, margins.edges[1:], strict=False)]
    axis.bar(margins.edges[:-1], [count / margins.pairs for count in margins.counts], widths, align="edge", color="0.8")
    axis.set_xlabel("reward margin (logits, as the method reads them)")
    axis.set_ylabel(f"share of {margins.of.replace('_', '-')} pairs")
    curve = axis.twinx()
    curve.plot(weights.reward_margin, weights.weight, color="C1", label=f"weight of {report.method}")
    curve.axhline(1, color="C1", linewidth=0.5, linestyle=":")
    for name, scale in report.scales.items():
        for place in (-scale.value, scale.value):
            if margins.edges[0] <= place <= margins.edges[-1]:
                label = f"{name} = {scale.value:.3g}" if place > 0 else None
                curve.axvline(place, color="C2", linewidth=1, linestyle="--", label=label)
    curve.set_ylim(0, 1.25 * max(1.0, *weights.weight))
    curve.set_ylabel("weight")
    axis.set_title(f"weights from {weights.quantiles['0']:.3g} to {weights.quantiles['1']:.3g}", fontsize=10, y=1.0)
    axis.spines[["top"]].set_visible(False)
    curve.spines[["top"]].set_visible(False)
    curve.legend(frameon=False, loc="upper left")
