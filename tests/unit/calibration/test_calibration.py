import math

import numpy as np
import pytest
import torch

from madpo.calibration.figures import expected_calibration_error, fit_temperature, reliability, reward_report
from madpo.calibration.measure import measure, weights_of
from madpo.calibration.report import CalibrationReport
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.losses.madpo import madpo_weight
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import Quantile
from madpo.pages.calibration_plot import write_plot

SURE = math.log(999)


def drawn_margins(scale: float, count: int = 20_000) -> np.ndarray:
    """Margins of a perfectly calibrated model, then multiplied by `scale`."""
    rng = np.random.default_rng(0)
    margins = rng.normal(size=count) * 2
    prefers_first = rng.random(count) < 1 / (1 + np.exp(-margins))
    return np.where(prefers_first, margins, -margins) * scale


def calibrated(params, *, method="madpo", temperature=1.0, held_out=None, training=None) -> CalibrationReport:
    return measure(
        get_method(method),
        parse_params(method, params),
        temperature=temperature,
        held_out=drawn_margins(2.5, 2000) if held_out is None else held_out,
        training=training,
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_scale_of_a_calibrated_model(scale):
    fitted = fit_temperature(drawn_margins(scale))

    assert fitted.value == pytest.approx(scale, rel=0.05)
    assert fitted.low < scale < fitted.high
    assert fitted.fitted


def test_the_temperature_is_the_minimum_of_the_loss():
    margins = drawn_margins(2.0, 300)
    best = fit_temperature(margins).value

    def loss(temperature):
        return np.logaddexp(0, -margins / temperature).mean()

    assert loss(best) < min(loss(best * 1.001), loss(best / 1.001))


def test_pairs_all_ordered_rightly_or_no_better_than_by_a_coin_fix_no_temperature():
    assert not fit_temperature([0.1, 2.0, 3.0]).fitted
    assert not fit_temperature([1.0, -1.0]).fitted
    assert fit_temperature([1.0, 1.0, -1.0]).value == pytest.approx(1 / math.log(2))


def test_a_calibrated_model_has_a_small_calibration_error_and_an_overconfident_one_does_not():
    assert expected_calibration_error(drawn_margins(1.0)) < 0.015
    assert expected_calibration_error(drawn_margins(4.0)) > 0.08


def test_reliability_puts_every_pair_in_the_bin_of_its_confidence():
    margin = math.log(0.62 / 0.38)
    bins = reliability([margin, -margin, margin, 50.0, 0.0])

    assert [each.pairs for each in bins] == [1, 3, 1]
    assert [each.confidence for each in bins] == pytest.approx([0.5, 0.62, 1.0])
    assert [each.accuracy for each in bins] == pytest.approx([0.5, 2 / 3, 1.0])
    assert expected_calibration_error([margin, -margin, margin]) == pytest.approx(2 / 3 - 0.62)


def test_the_report_states_accuracy_with_ties_as_half_and_the_loss():
    report = reward_report([2.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.0])

    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    expected = sum(math.log1p(math.exp(-margin)) for margin in (1.0, -1.0, 0.0, 0.5)) / 4
    assert report["loss"] == pytest.approx(expected)
    assert report["pairs"] == 4


@pytest.mark.parametrize(
    "margins",
    [
        [1.9, 2.0, 30.0],  # at the coldest temperature sigmoid(margin / 0.05) is 1, to the last bit
        [5.0, 5.0],
        [0.0, 4.0],
        [1e6, 2e6],
        [-1e-18, 1000.0],
        [-50.0, 1e4],
        [-1e6, -2.0],
        [0.0, 0.0],
        [3.0],
        [-3.0],
    ],
)
def test_a_temperature_is_found_or_refused_for_margins_of_any_size(margins):
    fitted = fit_temperature(margins)

    assert 0.05 <= fitted.value <= 20
    assert 0 <= fitted.low <= fitted.value
    assert fitted.high is None or fitted.high >= fitted.value
    assert fitted.fitted is False or min(margins) < 0 < max(margins)


def test_a_reward_model_that_orders_every_held_out_pair_far_apart_has_a_report():
    report = reward_report([9.0, 8.0, 7.5], [1.0, 0.5, -2.0])
    assert (report["accuracy"], report["temperature"]) == (1.0, 0.05)


@pytest.mark.parametrize("method", ["madpo", "madpo_posterior"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_quantile_is_numpys_over_the_training_margins(method, temperature):
    training = drawn_margins(3.0, 501)

    report = calibrated({"tau": {"quantile": 0.9}}, method=method, temperature=temperature, training=lambda: training)

    assert report.params["tau"] == float(np.quantile(np.abs(training / temperature), 0.9))
    assert (report.scales["tau"].rule, report.margins.of, report.margins.pairs) == ("quantile", "training", 501)
    assert report.scales["tau"].beyond_ratio == pytest.approx(0.1, abs=0.002)


def test_auto_is_where_the_reward_model_is_sure_whatever_margins_are_divided_by():
    raw = calibrated({"tau": "auto"})
    divided = calibrated({"tau": "auto"}, temperature=2.0)
    fitted = calibrated({"tau": "auto"}, temperature="fit")
    temperature = raw.held_out.temperature

    assert temperature == pytest.approx(2.5, rel=0.15)
    assert raw.params["tau"] == raw.suggested_tau == pytest.approx(SURE * temperature)
    assert divided.params["tau"] == pytest.approx(SURE * temperature / 2)
    assert fitted.params["tau"] == pytest.approx(SURE)
    assert (fitted.temperature.value, fitted.temperature.rule) == (temperature, "temperature")
    assert fitted.held_out.ece_used < raw.held_out.ece_used


def test_margins_rescaled_by_fit_give_the_same_weights_for_every_scale_of_reward_model():
    one, three = (
        calibrated({}, temperature="fit", held_out=drawn_margins(scale, 1000), training=drawn_margins(scale, 500))
        for scale in (1.0, 3.0)
    )

    assert one.weights.quantiles == pytest.approx(three.weights.quantiles, rel=1e-6)


def test_held_out_pairs_that_fix_no_temperature_fall_back_and_say_so():
    training = drawn_margins(1.0, 400)

    report = calibrated({"tau": "auto"}, temperature="fit", held_out=np.linspace(0.1, 3, 50), training=lambda: training)

    assert (report.temperature.value, report.temperature.rule) == (1.0, "fallback")
    assert report.params["tau"] == float(np.quantile(np.abs(training), 0.95))
    assert report.scales["tau"].rule == "fallback"
    assert report.suggested_tau is None
    assert "fix no temperature" in report.warnings[0]


def test_training_margins_are_asked_for_only_when_a_number_depends_on_them():
    def training():
        raise AssertionError("not needed")

    assert calibrated({"tau": 2.0}, training=training).margins.of == "held_out"
    assert calibrated({"tau": "auto"}, temperature="fit", training=training).margins.of == "held_out"


@pytest.mark.parametrize(
    ("params", "temperature", "names"),
    [({"tau": "auto"}, 1.0, "tau"), ({}, "fit", "temperature"), ({"tau": "auto"}, "fit", "temperature, tau")],
)
def test_without_held_out_margins_what_is_fitted_on_them_is_refused_by_name(params, temperature, names):
    with pytest.raises(FailedPreconditionError, match=rf"^{names} would be found on held-out margins"):
        calibrated(params, temperature=temperature, held_out=[], training=[1.0, 2.0])


def test_margins_that_are_all_0_give_no_scale():
    with pytest.raises(FailedPreconditionError, match=r"gives 0\.0"):
        calibrated({"tau": {"quantile": 0.5}}, training=[0.0, 0.0, 1.0])


def test_the_weights_are_those_of_the_loss():
    report = calibrated({"tau": 2.0, "c_max": 4.0, "c_min": 0.25})
    places = torch.tensor(report.weights.reward_margin, dtype=torch.float64)
    expected = madpo_weight(places, c_min=0.25, c_max=4.0, lam=1.0, tau=2.0)

    assert report.weights.weight == pytest.approx(expected.tolist())
    assert report.weights.quantiles["0"] <= report.weights.mean <= report.weights.quantiles["1"]


def test_weights_of_the_batch_are_normalized_over_the_population():
    config = parse_params("madpo", {"tau": 2.0, "normalize_weights": True})
    margins = drawn_margins(1.0, 300)

    assert weights_of(get_method("madpo"), config, margins, margins).mean() == pytest.approx(1)


@pytest.mark.parametrize("method", ["rm_soft", "adpo", "odpo", "sppo"])
def test_every_method_that_reads_margins_can_be_calibrated(method):
    report = calibrated({}, method=method, temperature="fit")

    assert report.scales == {}
    assert set(report.weights.weight) == {1.0}


def test_a_reward_model_no_better_than_a_coin_is_warned_of():
    rng = np.random.default_rng(1)
    coin, good = rng.normal(size=200), drawn_margins(1.0, 200)

    assert any("a coin might too" in warning for warning in calibrated({}, held_out=coin).warnings)
    assert any("contradicts" in warning for warning in calibrated({}, held_out=coin).warnings)
    assert calibrated({}, held_out=good).warnings == ()


def test_margins_far_from_log_odds_are_warned_of_until_they_are_divided():
    margins = drawn_margins(4.0, 2000)

    assert "too large to be log-odds" in calibrated({}, held_out=margins).warnings[0]
    assert calibrated({}, held_out=margins, temperature="fit").warnings == ()


def test_a_report_survives_json_to_the_last_bit_and_is_drawn(tmp_path):
    report = calibrated({"tau": {"quantile": 1 / 3}}, temperature="fit", training=drawn_margins(2.0, 77))

    write_plot(report, tmp_path / "calibration.png")

    assert CalibrationReport.model_validate_json(report.model_dump_json()) == report
    assert isinstance(report.scales["tau"].given, Quantile)
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("tau", [{"quantile": 0}, {"quantile": 1}, {"q": 0.5}, "automatic", 0, -1, None, [1]])
def test_a_wrong_scale_says_once_what_is_expected(tau):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_params("madpo", {"tau": tau}, path="method")

    (violation,) = caught.value.violations
    assert violation.field == "method.params.tau"
    assert violation.description.startswith('must be a number > 0, {"quantile": q} with 0 < q < 1, or "auto", got ')


def test_a_rule_is_no_number_for_a_loss():
    with pytest.raises(InvalidArgumentError, match="tau=auto becomes a number only inside a job"):
        parse_params("madpo", {"tau": "auto"}).tau_logits  # noqa: B018
