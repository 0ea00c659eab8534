"""From margins to a calibration report: measure, choose the numbers rules stand for, see what weights follow.

Each rule and why:

`{"quantile": q}`  that quantile of |margin| over the training pairs, after the temperature.
`"auto"`           the margin at which the reward model is 99.9 % sure. The paper sets tau to ln(0.999 / 0.001), which
                   means that only where margins are log-odds; with temperature T on held-out pairs it is T times as
                   much. Held-out pairs, since margins of the pairs it was trained on are over-confident.
`"fit"`            margins are divided by T, so that sigmoid(margin) is a probability and every parameter in units of
                   the margin (tau, lam, beta_r...) means the same for all reward models.

Where held-out pairs fix no temperature, "auto" takes the 0.95 quantile and "fit" leaves margins as they are.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike

from madpo.calibration import figures
from madpo.calibration.figures import Temperature, Vector
from madpo.calibration.report import (
    CalibrationReport,
    HeldOut,
    Margins,
    ScaleChoice,
    TemperatureChoice,
    Weights,
)
from madpo.errors import FailedPreconditionError
from madpo.losses.method import LossBatch, LossContext, Method, MethodConfig
from madpo.losses.scales import MarginScale, MarginTemperature, Quantile, fitted_names

_SURE_LOGITS = math.log(0.999 / 0.001)
_FALLBACK_QUANTILE = 0.95
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_HISTOGRAM_BINS = 40
_CURVE_POINTS = 201
_MANY_CONTRADICTED = 0.4
_FAR_FROM_LOG_ODDS = 2.0


def measure(
    method: Method,
    config: MethodConfig,
    *,
    temperature: MarginTemperature,
    held_out: ArrayLike,
    training: ArrayLike | Callable[[], ArrayLike] | None,
) -> CalibrationReport:
    """Calibrate a reward model for a method.

    Args:
        method: Reads margins.
        config: Its parameters, rules among them or not.
        temperature: What to divide margins by, or "fit".
        held_out: Raw margins of pairs the reward model was not trained on, [N]; N may be 0.
        training: Raw margins of all training pairs; the held-out ones stand for them where this is None. A function
            is called only when a number depends on them, or without held-out margins.

    Raises:
        FailedPreconditionError: A rule needs margins, and there are none.
    """
    held_out = np.asarray(held_out, dtype=np.float64)
    fitted = figures.fit_temperature(held_out) if len(held_out) else None
    scales = config.margin_scales()
    if fitted is None and (names := fitted_names(temperature, scales)):
        raise FailedPreconditionError(
            f"{', '.join(names)} would be found on held-out margins, and there are none "
            "(give eval_dataset, with a margin column when margins come from the dataset; or give numbers)"
        )
    choice = _choose_temperature(temperature, fitted)
    if callable(training):
        needed = fitted is None or any(_depends_on_training(scale, fitted) for scale in scales.values())
        training = training() if needed else None
    used = (held_out if training is None else np.asarray(training, dtype=np.float64)) / choice.value
    if not len(used):
        raise FailedPreconditionError("no pair has a reward margin, so there is nothing to calibrate")
    choices = {name: _choose_scale(scale, fitted, choice.value, used) for name, scale in scales.items()}
    resolved = config.model_copy(update={name: chosen.value for name, chosen in choices.items()})
    measured = None if fitted is None else _describe_held_out(held_out, fitted, choice.value)
    margins = _describe_margins(used, of_training=training is not None)
    return CalibrationReport(
        method=method.name,
        params=resolved.model_dump(mode="json"),
        temperature=choice,
        scales=choices,
        held_out=measured,
        margins=margins,
        weights=_describe_weights(method, resolved, used),
        suggested_tau=_SURE_LOGITS * fitted.value / choice.value if fitted is not None and fitted.fitted else None,
        warnings=tuple(_warnings(measured, margins, choice)),
    )


def weights_of(method: Method, config: MethodConfig, margins: ArrayLike, population: ArrayLike) -> Vector:
    """The weight of each pair's loss before the first step, while the policy is the reference.

    Args:
        method: Reads margins.
        config: Its parameters, all numbers.
        margins: As the method reads them, [N].
        population: Margins of the pairs that figures of the global batch are taken over.
    """
    stats = {}
    if method.observe is not None and method.requirements(config).global_batch:
        stats = dict(method.observe(config, _unmoved(population)))
    batch = _unmoved(margins)
    output = method.loss(config, batch, LossContext(stats=stats))
    weights: Vector = output.weight.detach().numpy().astype(np.float64)
    return weights


def _unmoved(margins: ArrayLike) -> LossBatch:
    """Pairs of a policy that still is the reference."""
    reward_margin = torch.as_tensor(np.asarray(margins, dtype=np.float64))
    zeros, ones = torch.zeros_like(reward_margin), torch.ones_like(reward_margin)
    return LossBatch(
        policy_chosen_logps=zeros,
        policy_rejected_logps=zeros,
        ref_chosen_logps=zeros,
        ref_rejected_logps=zeros,
        chosen_tokens=ones,
        rejected_tokens=ones,
        reward_margin=reward_margin,
    )


def _choose_temperature(given: MarginTemperature, fitted: Temperature | None) -> TemperatureChoice:
    if not isinstance(given, str):
        return TemperatureChoice(given=given, value=given, rule="given")
    assert fitted is not None
    if fitted.fitted:
        return TemperatureChoice(given=given, value=fitted.value, rule="temperature")
    return TemperatureChoice(given=given, value=1.0, rule="fallback")


def _depends_on_training(scale: MarginScale, fitted: Temperature) -> bool:
    return isinstance(scale, Quantile) or (scale == "auto" and not fitted.fitted)


def _choose_scale(given: MarginScale, fitted: Temperature | None, temperature: float, used: Vector) -> ScaleChoice:
    """The number a scale stands for. `used` are the margins as the method reads them."""
    absolute = np.abs(used)
    if isinstance(given, Quantile):
        value, rule = float(np.quantile(absolute, given.quantile)), "quantile"
    elif given != "auto":
        value, rule = float(given), "given"
    elif fitted is not None and fitted.fitted:
        value, rule = _SURE_LOGITS * fitted.value / temperature, "temperature"
    else:
        value, rule = float(np.quantile(absolute, _FALLBACK_QUANTILE)), "fallback"
    if value <= 0:
        raise FailedPreconditionError(
            f"the {rule} rule gives {value}: too many margins are 0 (use another reward model, or give a number)"
        )
    return ScaleChoice.model_validate(
        {"given": given, "value": value, "rule": rule, "beyond_ratio": float((absolute > value).mean())}
    )


def _describe_held_out(margins: Vector, fitted: Temperature, temperature: float) -> HeldOut:
    return HeldOut(
        pairs=len(margins),
        accuracy=figures.accuracy(margins),
        contradicted_ratio=figures.contradicted_ratio(margins),
        loss=figures.log_loss(margins),
        ece=figures.expected_calibration_error(margins),
        temperature=fitted.value,
        temperature_low=fitted.low,
        temperature_high=fitted.high,
        temperature_fitted=fitted.fitted,
        ece_used=figures.expected_calibration_error(margins / temperature),
        reliability=figures.reliability(margins / temperature),
    )


def _describe_margins(used: Vector, *, of_training: bool) -> Margins:
    counts, edges = np.histogram(used, bins=_HISTOGRAM_BINS)
    return Margins(
        of="training" if of_training else "held_out",
        pairs=len(used),
        mean=float(used.mean()),
        std=float(used.std()),
        contradicted_ratio=figures.contradicted_ratio(used),
        absolute_quantiles=_quantiles(np.abs(used)),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _describe_weights(method: Method, resolved: MethodConfig, used: Vector) -> Weights:
    weights = weights_of(method, resolved, used, used)
    places = np.linspace(used.min(), used.max(), _CURVE_POINTS)
    return Weights(
        mean=float(weights.mean()),
        quantiles={"0": float(weights.min()), **_quantiles(weights), "1": float(weights.max())},
        reward_margin=tuple(places.tolist()),
        weight=tuple(weights_of(method, resolved, places, used).tolist()),
    )


def _quantiles(values: Vector) -> dict[str, float]:
    return {f"{share:g}": float(np.quantile(values, share)) for share in _QUANTILES}


def _warnings(held_out: HeldOut | None, margins: Margins, temperature: TemperatureChoice) -> Iterator[str]:
    """What people should know before they spend a training on these margins."""
    if margins.contradicted_ratio > _MANY_CONTRADICTED:
        yield (
            f"the reward model contradicts {margins.contradicted_ratio:.0%} of the {margins.of.replace('_', '-')} "
            "labels (look at the data and at what it was trained on)"
        )
    if held_out is None:
        return
    if held_out.accuracy - 0.5 < 0.98 / math.sqrt(held_out.pairs):  # half of a coin's 95 % interval
        yield (
            f"the reward model orders {held_out.accuracy:.1%} of {held_out.pairs} held-out pairs as labelled, which a "
            "coin might too (train it longer, or give more held-out pairs)"
        )
    if not held_out.temperature_fitted:
        yield (
            "the held-out pairs fix no temperature: all are ordered rightly, or no better than by a coin "
            "(give more of them, such as the reward model was not trained on)"
        )
        return
    left = held_out.temperature / temperature.value
    low, high = held_out.temperature_low / temperature.value, held_out.temperature_high
    if low > _FAR_FROM_LOG_ODDS or (high is not None and high / temperature.value < 1 / _FAR_FROM_LOG_ODDS):
        size = f"{left:.1f} times too large" if left > 1 else f"{1 / left:.1f} times too small"
        yield f'margins are {size} to be log-odds (margin.temperature="fit" rescales them)'
