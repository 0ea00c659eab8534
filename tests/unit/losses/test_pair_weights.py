"""Weights of pairs: UPDPO by uncertainty, Sem-DPO by semantic distance."""

import math
from dataclasses import replace

import pytest
import torch

from madpo.losses.sem_dpo import semantic_weight
from madpo.losses.updpo import certainty, pessimistic_offset
from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import assert_equal_training, double, trained


@pytest.mark.parametrize("scheme", ["lcb", "scale", "weight"])
def test_certain_rewards_give_dpo(scheme: str) -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    certain = replace(full_batch(), chosen_uncertainty=zero, rejected_uncertainty=zero)

    assert_equal_training(trained("updpo", certain, scheme=scheme), trained("dpo", full_batch()))


def test_uncertainty_attenuates_the_gradient() -> None:
    result, found = trained("updpo", full_batch(), scheme="weight")
    _, plain = trained("dpo", full_batch())
    u, trust = double([0.2, 0.5, 0.1, 1]), certainty(double([0.2, 0.5]), double([0.1, 0.1]), temperature=2.0)

    torch.testing.assert_close(found["policy_chosen_logps"], result.outputs[0].weight * plain["policy_chosen_logps"])
    assert bool((result.outputs[0].weight < 1).all())
    torch.testing.assert_close(trust, double([math.exp(-math.sqrt(0.05) / 2), math.exp(-math.sqrt(0.26) / 2)]))
    assert not pessimistic_offset(u, u, k=3).any()


def test_sem_dpo_weights_the_gradient() -> None:
    result, found = trained("sem_dpo", full_batch(), alpha=2.0)
    _, plain = trained("dpo", full_batch())

    torch.testing.assert_close(found["policy_chosen_logps"], result.outputs[0].weight * plain["policy_chosen_logps"])
    assert semantic_weight(double([0, 2]), alpha=2.0).tolist() == pytest.approx([1, math.exp(-4)])
