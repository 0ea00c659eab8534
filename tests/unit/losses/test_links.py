"""Losses with links of their own: EXO, NCA, BCO, APO, DiscoPOP."""

import math
from dataclasses import replace

import pytest
import torch

from madpo.losses.apo import apo_down_loss, apo_zero_loss
from madpo.losses.bco import bco_pair_loss
from madpo.losses.discopop import discopop_loss
from madpo.losses.dpo import dpo_loss
from madpo.losses.exo import exo_pair_loss
from madpo.losses.nca import nca_pair_loss
from madpo.losses.registry import METHODS, parse_params
from tests.unit.losses.batches import full_batch, take, train_step
from tests.unit.losses.steps import DELTA, double, step, trained


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 0.4])
def test_exo_is_zero_at_its_target_alone(smoothing: float) -> None:
    target = math.log((1 - smoothing) / smoothing)

    assert float(exo_pair_loss(double(target), beta=1.0, label_smoothing=smoothing)) == pytest.approx(0, abs=1e-15)
    away = exo_pair_loss(target + DELTA[DELTA != 0], beta=1.0, label_smoothing=smoothing)
    assert bool((away > 0).all())
    p = DELTA.sigmoid()
    divergence = p * (p / (1 - smoothing)).log() + (1 - p) * ((1 - p) / smoothing).log()
    torch.testing.assert_close(
        exo_pair_loss(DELTA, beta=1.0, label_smoothing=smoothing), divergence, rtol=1e-6, atol=1e-6
    )


def test_values_where_the_policy_is_the_reference() -> None:
    zero = torch.zeros(1, dtype=torch.float64)

    assert float(nca_pair_loss(zero, zero, beta=0.1)) == pytest.approx(2 * math.log(2))
    assert float(bco_pair_loss(zero, zero, beta=0.1)) == pytest.approx(2 * math.log(2))
    assert float(apo_zero_loss(zero, zero, beta=0.1)) == 1
    assert float(apo_down_loss(zero, zero, beta=0.1)) == 1


def test_apo_moves_the_sides_as_named() -> None:
    _, zero = trained("apo_zero", full_batch())
    _, down = trained("apo_down", full_batch())

    assert bool((zero["policy_chosen_logps"] < 0).all() and (zero["policy_rejected_logps"] > 0).all())
    at_reference = full_batch()
    at_reference = replace(
        at_reference,
        policy_chosen_logps=at_reference.require("ref_chosen_logps").clone().requires_grad_(),
        policy_rejected_logps=at_reference.require("ref_rejected_logps").clone().requires_grad_(),
    )
    _, start = trained("apo_down", at_reference)
    torch.testing.assert_close(start["policy_chosen_logps"], torch.zeros(4, dtype=torch.float64))
    assert bool((start["policy_rejected_logps"] > 0).all())
    assert bool((down["policy_rejected_logps"] > 0).all())


def test_discopop_lies_between_its_two_losses() -> None:
    u = DELTA / 3
    logistic, exponential = dpo_loss(u, beta=1.0), (-u).exp()

    sharp = discopop_loss(u, beta=1.0, temperature=1e-4)
    torch.testing.assert_close(sharp[u < 0], logistic[u < 0])
    torch.testing.assert_close(sharp[u > 0], exponential[u > 0])
    plain = logistic * (1 - (u / 0.8).sigmoid()) + exponential * (u / 0.8).sigmoid()
    torch.testing.assert_close(discopop_loss(u, beta=1.0, temperature=0.8), plain)
    assert float(discopop_loss(double(0.0), beta=1.0, temperature=0.3)) == pytest.approx((math.log(2) + 1) / 2)


def test_bco_centres_on_the_mean_of_all_rewards_so_far() -> None:
    batch = full_batch()
    rewards = 0.01 * torch.cat([batch.chosen_log_ratio, batch.rejected_log_ratio]).detach()
    first = train_step(METHODS["bco_pair"], parse_params("bco_pair", {"center": True}), batch)
    moved = replace(
        take(batch, [0, 1]), policy_chosen_logps=(batch.policy_chosen_logps[:2].detach() + 40).requires_grad_()
    )
    config = parse_params("bco_pair", {"center": True})
    second = train_step(METHODS["bco_pair"], config, moved, state=first.state)
    later = 0.01 * torch.cat([moved.chosen_log_ratio, moved.rejected_log_ratio]).detach()

    torch.testing.assert_close(first.state["mean"], rewards.mean())
    torch.testing.assert_close(second.state["mean"], torch.cat([rewards, later]).mean())
    torch.testing.assert_close(second.outputs[0].metrics["bco/center"], second.state["mean"].expand(2))
    held_out = train_step(METHODS["bco_pair"], config, moved, state=first.state, training=False)
    torch.testing.assert_close(held_out.outputs[0].metrics["bco/center"], first.state["mean"].expand(2))


def test_a_centred_bco_does_not_see_a_shift_of_all_rewards() -> None:
    batch = full_batch()
    shifted = replace(
        batch,
        ref_chosen_logps=batch.require("ref_chosen_logps") - 5,
        ref_rejected_logps=batch.require("ref_rejected_logps") - 5,
    )

    torch.testing.assert_close(step("bco_pair", shifted, center=True).loss, step("bco_pair", batch, center=True).loss)
    assert step("bco_pair", shifted).loss.item() != pytest.approx(step("bco_pair", batch).loss.item())
