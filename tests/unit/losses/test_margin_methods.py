import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.errors import InvalidArgumentError
from madpo.losses.bpo import bpo_loss
from madpo.losses.dpo import dpo_loss
from madpo.losses.focalpo import focalpo_loss
from madpo.losses.madpo import madpo_weight
from madpo.losses.madpo_posterior import MADPO_POSTERIOR, MadpoPosteriorConfig
from madpo.losses.method import LossBatch, LossContext
from madpo.losses.odpo import odpo_offset
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.rm_soft import rm_soft_loss
from tests.unit.losses.batches import VECTORS, full_batch, train_step
from tests.unit.losses.test_dpo_family import run, same, slope
from tests.unit.losses.test_madpo import parameters, settings

U = torch.linspace(-6, 6, 41, dtype=torch.float64)


def swapped(batch: LossBatch) -> LossBatch:
    """Every pair with its label turned round."""
    return replace(
        batch,
        policy_chosen_logps=batch.policy_rejected_logps,
        policy_rejected_logps=batch.policy_chosen_logps,
        ref_chosen_logps=batch.ref_rejected_logps,
        ref_rejected_logps=batch.ref_chosen_logps,
        reward_margin=-batch.require("reward_margin"),
    )


def turned_back(step: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """A step over a swapped batch, its gradients under the names of the batch as labelled."""
    loss, gradient = step
    chosen, rejected = gradient["policy_chosen_logps"], gradient["policy_rejected_logps"]
    return loss, {"policy_chosen_logps": rejected, "policy_rejected_logps": chosen}


# Soft labels and posterior MADPO


def test_soft_labels_are_least_at_the_reward_margin_and_blind_to_the_label() -> None:
    h = torch.tensor([-3.5, -0.5, 0.0, 0.8, 3.0], dtype=torch.float64)

    torch.testing.assert_close(slope(lambda u: rm_soft_loss(u, h, beta=1), h), torch.zeros_like(h), rtol=0, atol=1e-15)
    torch.testing.assert_close(rm_soft_loss(h + 1, h, beta=1), rm_soft_loss(-h - 1, -h, beta=1))
    assert same(run("rm_soft"), turned_back(run("rm_soft", swapped(full_batch()))))


@pytest.mark.parametrize("params", [{}, {"mode": "amp_only"}, {"clip_negative": False}, {"normalize_weights": True}])
def test_full_trust_in_the_label_gives_madpo(params: dict[str, Any]) -> None:
    assert same(run("madpo_posterior", label_weight=1, tau=2, **params), run("madpo", tau=2, **params))


@pytest.mark.parametrize("bound", ["c_max", "c_min"])
def test_without_weights_it_goes_from_dpo_to_soft_labels(bound: str) -> None:
    assert same(run("madpo_posterior", label_weight=1, **{bound: 1}), run("dpo"))
    assert same(run("madpo_posterior", label_weight=0, **{bound: 1}), run("rm_soft"))


@settings
def test_without_trust_in_the_label_it_is_the_expectation_of_madpo_and_blind_to_the_label(setting: str) -> None:
    batch = full_batch()
    likely = batch.require("reward_margin").sigmoid()

    def each(of: LossBatch, name: str, **params: float) -> Tensor:
        (output,) = train_step(METHODS[name], parse_params(name, params), of).outputs
        return output.per_pair

    params = parameters(setting)
    expectation = likely * each(batch, "madpo", **params) + (1 - likely) * each(swapped(batch), "madpo", **params)
    torch.testing.assert_close(each(batch, "madpo_posterior", label_weight=0, **params), expectation)
    blind = run("madpo_posterior", swapped(full_batch()), label_weight=0, **params)
    assert same(run("madpo_posterior", label_weight=0, **params), turned_back(blind))


@settings
def test_each_pair_has_its_finite_target(setting: str) -> None:
    h = torch.tensor(VECTORS[setting]["h"], dtype=torch.float64)
    target = torch.tensor(VECTORS[setting]["target_margin"], dtype=torch.float64)
    zeros = torch.zeros_like(h)
    config = MadpoPosteriorConfig(beta=1.0, label_weight=0.0, **parameters(setting))

    def loss(u: Tensor) -> Tensor:
        batch = LossBatch(u, zeros, ref_chosen_logps=zeros, ref_rejected_logps=zeros, reward_margin=h)
        return MADPO_POSTERIOR.loss(config, batch, LossContext()).per_pair

    torch.testing.assert_close(slope(loss, target), zeros, rtol=0, atol=1e-12)


@settings
@pytest.mark.parametrize("label_weight", [0.0, 0.25, 1.0])
def test_the_gradient_weighs_both_sides(setting: str, label_weight: float) -> None:
    batch, a = full_batch(), label_weight
    h, u = batch.require("reward_margin"), 0.1 * batch.log_ratio_diff.detach()
    w, mirrored = madpo_weight(h, **parameters(setting)), madpo_weight(-h, **parameters(setting))

    _, gradient = run("madpo_posterior", batch, label_weight=a, **parameters(setting))

    labelled = (a + (1 - a) * h.sigmoid()) * w
    against = (1 - a) * (-h).sigmoid() * mirrored
    expected = 0.1 / 4 * (against * u.sigmoid() - labelled * (-u).sigmoid())
    torch.testing.assert_close(gradient["policy_chosen_logps"], expected)
    (output,) = train_step(MADPO_POSTERIOR, MadpoPosteriorConfig(label_weight=a, **parameters(setting)), batch).outputs
    torch.testing.assert_close(output.weight, labelled + against)


def test_normalising_scales_both_sides_to_a_mean_weight_of_one() -> None:
    batch = full_batch()
    (raw,) = train_step(MADPO_POSTERIOR, MadpoPosteriorConfig(tau=2), batch).outputs
    (scaled,) = train_step(MADPO_POSTERIOR, MadpoPosteriorConfig(tau=2, normalize_weights=True), batch).outputs

    assert float(scaled.weight.mean()) == pytest.approx(1)
    torch.testing.assert_close(scaled.per_pair, raw.per_pair / raw.weight.mean())


# ODPO


def test_without_offset_odpo_is_dpo() -> None:
    assert same(run("odpo", alpha=0.0), run("dpo"))
    assert same(run("odpo", alpha=0.0, scale="identity"), run("dpo"))


def test_the_offset_is_the_log_of_the_gap_and_finite_without_one() -> None:
    gaps = torch.tensor([2.0, 1.0, 0.5, 0.0, -3.0], dtype=torch.float64)
    offset = odpo_offset(gaps, alpha=0.5)

    assert offset.tolist() == pytest.approx([0.5 * math.log(gap) for gap in (2, 1, 0.5, 1e-6, 1e-6)])
    assert float(offset[2]) < 0
    assert odpo_offset(gaps, alpha=0.5, scale="identity").tolist() == [1, 0.5, 0.25, 0, -1.5]


def test_equal_gaps_give_dpo_a_fixed_margin() -> None:
    batch = full_batch()
    equal = replace(batch, reward_margin=torch.full((4,), 3.0, dtype=torch.float64))

    expected = dpo_loss(0.1 * batch.log_ratio_diff - math.log(3), beta=1).mean()
    torch.testing.assert_close(run("odpo", equal)[0], expected)


# FocalPO


def test_without_focus_it_is_dpo() -> None:
    assert same(run("focalpo", gamma=0.0), run("dpo"))


@pytest.mark.parametrize("gamma", [0.05, 0.5, 2.0])
def test_the_slope_turns_at_its_point_unless_the_weight_is_detached(gamma: float) -> None:
    p = U.sigmoid()
    attached = slope(lambda u: focalpo_loss(u, beta=1, gamma=gamma), U)
    detached = slope(lambda u: focalpo_loss(u, beta=1, gamma=gamma, detach_weight=True), U)

    torch.testing.assert_close(attached, -(p**gamma) * (1 - p) * (1 + gamma * p.log()))
    assert torch.equal(attached > 0, p < math.exp(-1 / gamma))
    torch.testing.assert_close(detached, -(p**gamma) * (1 - p))


@pytest.mark.parametrize("gamma", [1 / math.log(2), 2.0])
def test_a_focus_that_trains_backwards_is_refused(gamma: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"1\.4427") as caught:
        parse_params("focalpo", {"gamma": gamma}, path="method")

    assert [violation.field for violation in caught.value.violations] == ["method.params.gamma"]
    parse_params("focalpo", {"gamma": gamma, "detach_weight": True})
    parse_params("focalpo", {"gamma": 1.44})


# Balanced


def test_the_weaker_side_alone_trains() -> None:
    chosen = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)

    bpo_loss(chosen, rejected, beta=0.1, alpha=1).sum().backward()

    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad != 0).tolist() == [False, True]
    assert (rejected.grad != 0).tolist() == [True, False]


def test_it_asks_more_than_dpo_where_both_sides_are_right() -> None:
    rise = torch.linspace(0, 5, 11, dtype=torch.float64)
    chosen, fall = (axis.flatten() for axis in torch.meshgrid(rise, rise, indexing="ij"))

    balanced = bpo_loss(chosen, -fall, beta=0.1, alpha=1)

    assert bool((balanced >= dpo_loss(chosen + fall, beta=0.1)).all())
    torch.testing.assert_close(bpo_loss(rise, -rise, beta=0.1, alpha=1), dpo_loss(rise, beta=0.1))


def test_only_a_risen_chosen_and_a_fallen_rejected_response_are_right() -> None:
    sides = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    chosen, rejected = (axis.flatten() for axis in torch.meshgrid(sides, sides, indexing="ij"))

    better_than_even = bpo_loss(chosen, rejected, beta=1, alpha=0.5) < math.log(2)

    assert better_than_even.tolist() == [False, False, True, False]
