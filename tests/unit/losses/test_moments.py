"""Running statistics of batches."""

from typing import Any

import pytest
import torch

from madpo.losses.moments import running_moments
from tests.unit.losses.steps import double


def test_the_first_corrected_moments_are_the_batch_s_own() -> None:
    values = double([2, -1.25, 1, -2.25])
    moments = running_moments(values, {}, momentum=0.9, initial_std=3.0)

    torch.testing.assert_close(moments.mean, values.mean())
    torch.testing.assert_close(moments.std, values.std())
    cold = running_moments(values, {}, momentum=0.9, bias_correction=False)
    torch.testing.assert_close(cold.mean, 0.1 * values.mean())
    torch.testing.assert_close(cold.std, 0.1 * values.std())


def test_corrected_moments_weigh_the_past_by_its_age() -> None:
    batches = [double([1, 2, 4]), double([0, 5, 1]), double([-3, 3, 1])]
    state: Any = {}
    for values in batches:
        moments = running_moments(values, state, momentum=0.6)
        state = moments.state

    weights = double([0.36, 0.6, 1.0]) / 1.96
    torch.testing.assert_close(moments.mean, (weights * torch.stack([v.mean() for v in batches])).sum())
    torch.testing.assert_close(moments.std, (weights * torch.stack([v.std() for v in batches])).sum())
    assert int(state["steps"]) == 3


def test_moments_without_momentum_without_spread_and_outside_training() -> None:
    state = running_moments(double([5, 7]), {}, momentum=0.0).state

    assert float(running_moments(double([1, 2]), state, momentum=0.0).mean) == 1.5
    assert float(running_moments(double([3]), {}, momentum=0.9).std) == pytest.approx(1e-3)
    held_out = running_moments(double([1, 2]), state, momentum=0.0, training=False)
    assert float(held_out.mean) == 6
    assert held_out.state is state
