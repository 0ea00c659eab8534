"""Calibration within a policy job: margins are fetched, measured and stored once, before the first step."""

import logging
from collections.abc import Sequence
from pathlib import Path

from madpo.calibration.measure import measure
from madpo.calibration.report import CalibrationReport
from madpo.jobs.methods import MarginParameters
from madpo.losses.method import Method, MethodConfig
from madpo.pages.calibration_plot import write_plot
from madpo.types import PreferencePair
from madpo.worker.tolerance import Tolerance
from madpo_trainer.margins.source import MarginSource

logger = logging.getLogger(__name__)


def calibrate(
    method: Method,
    config: MethodConfig,
    margins: MarginSource,
    *,
    parameters: MarginParameters,
    training: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair],
) -> CalibrationReport | None:
    """Choose the numbers that rules of the job stand for, and measure what comes of them.

    Margins of held-out pairs are always asked for; those of all training pairs only where a number depends on them,
    since asking ahead of the steps costs no waiting. Pairs that go without a margin are left out.

    Returns:
        The report; None where no rule asks for one and no held-out pair has a margin.
    """
    known = _known(margins, held_out)
    if not known and parameters.temperature != "fit" and not _has_rules(config):
        return None
    return measure(
        method,
        config,
        temperature=parameters.temperature,
        held_out=known,
        training=lambda: _known(margins, training, training=True),
    )


def write_artifacts(report: CalibrationReport, directory: Path, tolerance: Tolerance) -> None:
    """`calibration.json` and `calibration.png`."""
    (directory / "calibration.json").write_text(report.to_json())
    plot = directory / "calibration.png"
    tolerance.attempt("the plot of the calibration", lambda: write_plot(report, plot), None)


def _known(margins: MarginSource, pairs: Sequence[PreferencePair], *, training: bool = False) -> list[float]:
    return [margin for margin in margins.of(pairs, training=training) if margin is not None]


def _has_rules(config: MethodConfig) -> bool:
    return any(not isinstance(scale, float) for scale in config.margin_scales().values())
