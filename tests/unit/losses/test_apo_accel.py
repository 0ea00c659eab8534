"""Accelerated preference optimisation: policies moved on by momentum."""

import torch

from madpo.losses.apo_accel import extrapolate
from madpo.losses.method import ReferenceUpdate
from madpo.losses.registry import parse_params
from tests.unit.losses.steps import double


def test_extrapolated_logits_are_the_momentum_of_log_probs() -> None:
    previous, policy = double([0.2, -0.1, 0.4]), double([0.5, -0.3, 0.1])
    old, new = previous.softmax(dim=0), policy.softmax(dim=0)

    moved = extrapolate(policy, previous, alpha=0.3).softmax(dim=0)

    torch.testing.assert_close(moved, new * (new / old) ** 0.3 / (new * (new / old) ** 0.3).sum())
    assert torch.equal(extrapolate(policy, previous, alpha=0.0), policy)
    update = parse_params("apo_accel", {"iteration_steps": 5}).reference_update()
    assert update == ReferenceUpdate(every=5, rate=1.0, extrapolation=0.3)
