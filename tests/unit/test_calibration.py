import math

import pytest
import torch

from madpo_trainer.calibration import calibration_report, expected_calibration_error, fit_temperature


def drawn_margins(scale: float, count: int = 20_000) -> torch.Tensor:
    """Margins of a perfectly calibrated model, then multiplied by `scale`."""
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(count, generator=generator, dtype=torch.float64) * 2
    prefers_first = torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(margins)
    return torch.where(prefers_first, margins, -margins) * scale


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_scale_of_a_calibrated_model(scale):
    assert fit_temperature(drawn_margins(scale)) == pytest.approx(scale, rel=0.05)


def test_a_calibrated_model_has_a_small_calibration_error_and_an_overconfident_one_does_not():
    assert expected_calibration_error(drawn_margins(1.0)) < 0.015
    assert expected_calibration_error(drawn_margins(4.0)) > 0.08


def test_the_report_states_accuracy_with_ties_as_half_and_the_loss():
    report = calibration_report(torch.tensor([2.0, 0.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.0]))

    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    expected = sum(math.log1p(math.exp(-margin)) for margin in (1.0, -1.0, 0.0, 0.5)) / 4
    assert report["loss"] == pytest.approx(expected)
    assert report["pairs"] == 4
