"""RSO: which candidates are accepted."""

import torch

from madpo.losses.rso import rso_accept
from tests.unit.losses.steps import double


def test_rso_accepts_everything_when_hot_and_the_best_when_cold() -> None:
    rewards = double([[1, 0.2, 1.4], [-5, -3, -4]])

    torch.testing.assert_close(rso_accept(rewards, temperature=1e9), torch.ones_like(rewards))
    assert rso_accept(rewards, temperature=1e-3).round().tolist() == [[0, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(rso_accept(rewards + 9, temperature=0.5), rso_accept(rewards, temperature=0.5))
