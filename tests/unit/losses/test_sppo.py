"""SPPO: targets from win probabilities."""

import math
from dataclasses import replace

import pytest
import torch

from madpo.losses.method import ReferenceUpdate
from madpo.losses.registry import parse_params
from madpo.losses.sppo import sppo_loss, win_probabilities
from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import assert_equal_training, double, step, trained


def test_sppo_is_least_at_its_targets() -> None:
    wins = double([0.8, 0.5, 0.0])
    targets = ((wins - 0.5) / 0.01).requires_grad_()

    loss = sppo_loss(targets, targets, wins, wins, beta=0.01)
    loss.sum().backward()

    assert not loss.any()
    assert not targets.grad.any()  # type: ignore[union-attr]


def test_sppo_s_win_probabilities() -> None:
    batch = full_batch()
    wins = win_probabilities(batch.require("list_scores"), batch.require("list_mask"))
    by_hand = [(0.5 + 1 / (1 + math.exp(-gap))) / 2 for gap in (1, -1)]

    assert wins[2].tolist() == pytest.approx([by_hand[0], 0, by_hand[1], 0])
    assert wins.sum(dim=1).tolist() == pytest.approx((0.5 * batch.require("list_mask").sum(dim=1)).tolist())
    result = step("sppo", batch, win_probability="list", beta=0.1).outputs[0].per_pair
    third = (-20 + 19 - 10 * (by_hand[0] - 0.5)) ** 2 + (-18.5 + 19.5 - 10 * (by_hand[1] - 0.5)) ** 2
    assert result[2].item() == pytest.approx(third / 2)


def test_sure_margins_are_hard_wins() -> None:
    sure = replace(full_batch(), reward_margin=torch.full((4,), 800.0, dtype=torch.float64))

    assert_equal_training(trained("sppo", sure), trained("sppo", full_batch(), win_probability="hard"))
    assert parse_params("sppo", {}).reference_update() is None
    assert parse_params("sppo", {"iteration_steps": 30}).reference_update() == ReferenceUpdate(every=30, rate=1.0)
