"""How far a reward model's margins can be read as probabilities."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_BINS = 10


def calibration_report(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Accuracy, loss and calibration on held-out pairs.

    sigmoid(margin) is the model's probability that the preferred response is preferred. A Bradley-Terry model has no
    fixed scale: `temperature` is the divisor of the margins that fits the held-out labels best (above 1:
    over-confident), `ece` the mean distance between confidence and accuracy over ten equal-width bins of confidence.

    Args:
        chosen: Raw logits of the preferred responses, shape [N].
        rejected: Raw logits of the others, shape [N].
    """
    margins = (chosen - rejected).double()
    scores = torch.cat([chosen, rejected]).double()
    return {
        "accuracy": float(((margins > 0).double() + 0.5 * (margins == 0).double()).mean()),
        "loss": float(F.softplus(-margins).mean()),
        "ece": expected_calibration_error(margins),
        "temperature": fit_temperature(margins),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "margin_mean": float(margins.mean()),
        "margin_std": float(margins.std()),
        "pairs": float(len(margins)),
    }


def expected_calibration_error(margins: Tensor) -> float:
    """Mean |accuracy - confidence| over bins of confidence in [0.5, 1], weighted by their pairs.

    Args:
        margins: Chosen minus rejected logits, shape [N].

    Source: Guo et al., arXiv:1706.04599, equation 3.
    """
    confidence = torch.sigmoid(margins.abs())
    correct = (margins > 0).double() + 0.5 * (margins == 0).double()
    bins = ((confidence - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    gaps = [
        (bins == index).double().mean() * (correct[bins == index].mean() - confidence[bins == index].mean()).abs()
        for index in range(_BINS)
        if bool((bins == index).any())
    ]
    return float(torch.stack(gaps).sum())


def fit_temperature(margins: Tensor) -> float:
    """The t > 0 that minimises the mean of softplus(-margin / t); in [0.05, 20].

    The loss is convex in 1/t, so a ternary search over log t finds the minimum.
    """
    low, high = -3.0, 3.0
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _loss_at(margins, left) < _loss_at(margins, right):
            high = right
        else:
            low = left
    return float(torch.tensor((low + high) / 2).exp())


def _loss_at(margins: Tensor, log_temperature: float) -> float:
    return float(F.softplus(-margins * torch.tensor(-log_temperature).exp()).mean())
