import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.losses.dpo import dpo_loss
from madpo.losses.f_dpo import f_divergence_score
from madpo.losses.hinge import hinge_loss
from madpo.losses.ipo import ipo_loss
from madpo.losses.method import LossBatch, ReferenceUpdate
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.robust import robust_loss
from madpo.losses.wpo import sequence_log_weight, wpo_weight
from tests.unit.losses.batches import VECTORS, full_batch, gradients, train_step
from tests.unit.losses.vectors import check, dtypes

U = torch.linspace(-6, 6, 41, dtype=torch.float64)


def run(name: str, batch: LossBatch | None = None, **params: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a step and its gradients."""
    batch = batch or full_batch()
    loss = train_step(METHODS[name], parse_params(name, params), batch).loss
    loss.backward()
    return loss, gradients(batch)


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> bool:
    """Loss and gradients agree."""
    torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=1e-14)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-12, atol=1e-14)
    return True


def slope(loss: Any, at: Tensor) -> Tensor:
    point = at.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point).sum(), point)
    return gradient


# DPO


def test_dpo_is_log_2_where_the_policy_is_the_reference() -> None:
    assert dpo_loss(torch.zeros(3, dtype=torch.float64), beta=0.1).tolist() == pytest.approx([math.log(2)] * 3)


def test_the_gradient_of_dpo_is_beta_times_the_doubt() -> None:
    batch = full_batch()
    _, gradient = run("dpo", batch, beta=0.3)

    expected = -0.3 / 4 * torch.sigmoid(-0.3 * batch.log_ratio_diff.detach())
    torch.testing.assert_close(gradient["policy_chosen_logps"], expected)
    torch.testing.assert_close(gradient["policy_rejected_logps"], -expected)


@pytest.mark.parametrize("margin", [-2.0, 0.0, 0.7, 4.0])
def test_dpo_with_both_orders_is_least_at_the_true_margin(margin: float) -> None:
    at = torch.tensor([margin], dtype=torch.float64)
    likely = torch.sigmoid(at)

    assert float(slope(lambda u: likely * dpo_loss(u, beta=1) + (1 - likely) * dpo_loss(-u, beta=1), at)) < 1e-15


def test_dpo_knows_only_the_difference() -> None:
    batch = full_batch()
    shifted = replace(
        batch,
        policy_chosen_logps=(batch.policy_chosen_logps.data - 8).requires_grad_(),
        policy_rejected_logps=(batch.policy_rejected_logps.data - 8).requires_grad_(),
    )

    assert same(run("dpo", batch), run("dpo", shifted))


def test_without_a_reference_dpo_takes_it_as_zero() -> None:
    batch = full_batch()
    zeros = torch.zeros(4, dtype=torch.float64)

    expected = run("dpo", replace(full_batch(), ref_chosen_logps=zeros, ref_rejected_logps=zeros))

    assert same(run("dpo", batch, reference_free=True), expected)
    assert not METHODS["dpo"].requirements(parse_params("dpo", {"reference_free": True})).reference


@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.4])
def test_smoothing_stops_at_the_logit_of_the_right_labels_share(smoothing: float) -> None:
    at = torch.tensor([math.log((1 - smoothing) / smoothing)], dtype=torch.float64)

    assert float(slope(lambda u: dpo_loss(u, beta=1, label_smoothing=smoothing), at)) == pytest.approx(0, abs=1e-15)
    expected = (1 - smoothing) * dpo_loss(U, beta=1) + smoothing * dpo_loss(-U, beta=1)
    torch.testing.assert_close(dpo_loss(U, beta=1, label_smoothing=smoothing), expected)


@dtypes
def test_the_bradley_terry_loss_of_rewards_is_that_of_implicit_rewards(dtype: torch.dtype) -> None:
    each = dpo_loss(full_batch(dtype).require("reward_margin"), beta=1.0)

    check("rm_bt", dtype, each=each, mean=each.mean())


# Other links


@pytest.mark.parametrize("flipped", [0.0, 0.1, 0.45])
def test_robust_dpo_is_unbiased_under_flipped_labels(flipped: float) -> None:
    seen = (1 - flipped) * robust_loss(U, beta=1, label_smoothing=flipped) + flipped * robust_loss(
        -U, beta=1, label_smoothing=flipped
    )

    torch.testing.assert_close(seen, dpo_loss(U, beta=1))


def test_robust_dpo_without_flips_is_dpo_and_with_them_unbounded() -> None:
    assert same(run("robust", label_smoothing=0.0), run("dpo"))
    far = torch.tensor([60.0], dtype=torch.float64)
    assert float(slope(lambda u: robust_loss(u, beta=1, label_smoothing=0.1), far)) == pytest.approx(-0.1 / 0.8)


def test_ipo_is_a_parabola_around_its_target() -> None:
    target, beta = 5.0, 0.1

    assert float(ipo_loss(torch.tensor(target), beta=beta)) == 0
    torch.testing.assert_close(ipo_loss(target + U, beta=beta), ipo_loss(target - U, beta=beta))
    torch.testing.assert_close(slope(lambda d: ipo_loss(d, beta=beta), U), 2 * (U - target))


def test_the_hinge_lets_go_of_pairs_that_are_apart() -> None:
    far = torch.tensor([10.0, 30.0], dtype=torch.float64)
    near = torch.tensor([9.999, -4.0], dtype=torch.float64)

    assert hinge_loss(far, beta=0.1).tolist() == [0, 0]
    assert float(slope(lambda d: hinge_loss(d, beta=0.1), far)[1]) == 0
    assert slope(lambda d: hinge_loss(d, beta=0.1), near).tolist() == [-0.1, -0.1]


# Other log-ratios


def test_length_normalised_dpo_of_equal_lengths_is_dpo_at_beta_over_length() -> None:
    lengths = torch.full((4,), 7)
    batch = replace(full_batch(), chosen_tokens=lengths, rejected_tokens=lengths)

    assert same(run("dpo_norm", batch, beta=0.7), run("dpo", beta=0.1))


def test_ld_dpo_goes_from_dpo_to_truncation() -> None:
    whole, cut = full_batch(), full_batch()
    loss, gradient = run("ld_dpo", whole, alpha=1.0)
    truncated, kept = run("ld_dpo", cut, alpha=0.0)

    torch.testing.assert_close(loss, run("dpo")[0])
    public = torch.minimum(cut.require("chosen_tokens"), cut.require("rejected_tokens"))
    for side in ("chosen", "rejected"):
        name = f"{side}_token_logps"
        assert torch.equal((gradient[name] != 0), whole.require(f"{side}_token_mask"))
        assert torch.equal((kept[name] != 0), torch.arange(25) < public[:, None])
    assert not torch.equal(truncated, loss)


@pytest.mark.parametrize("params", [{"divergence": "reverse_kl"}, {"divergence": "alpha", "alpha": 1.0}])
def test_f_dpo_with_reverse_kl_is_dpo(params: dict[str, Any]) -> None:
    assert same(run("f_dpo", **params), run("dpo"))


def test_the_alpha_divergence_joins_forward_and_reverse_kl() -> None:
    close_to_one = f_divergence_score(U, "alpha", alpha=1 - 1e-9)
    torch.testing.assert_close(close_to_one, U, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(f_divergence_score(U, "alpha", alpha=0.0), 1 + f_divergence_score(U, "forward_kl"))
    torch.testing.assert_close(f_divergence_score(U, "forward_kl"), -torch.exp(-U))
    torch.testing.assert_close(f_divergence_score(U, "js"), U - torch.log1p(U.exp()))
    torch.testing.assert_close(f_divergence_score(U, "alpha", alpha=0.5).diff(), (torch.exp(-0.5 * U) / -0.5).diff())


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scores_rise_and_stay_finite(divergence: Any, dtype: torch.dtype) -> None:
    far = torch.tensor([-6e4, -100.0, -5.0, 0.0, 5.0, 6e4], dtype=dtype)
    scores = f_divergence_score(far, divergence)

    assert bool(scores.isfinite().all())
    assert bool((scores.diff() >= 0).all())
    assert bool((f_divergence_score(U, divergence).diff() > 0).all())


# Additions and weights


def test_rpo_adds_the_likelihood_of_the_chosen() -> None:
    assert same(run("rpo", beta=0.1, sft_weight=0.0), run("dpo"))
    tokens, (_, plain) = full_batch().require("chosen_tokens").double(), run("dpo")
    for reduction, share in (("token", 1 / tokens.sum().expand(4)), ("sequence", 1 / (4 * tokens))):
        _, mixed = run("rpo", beta=0.1, sft_weight=0.5, sft_reduction=reduction)
        torch.testing.assert_close(mixed["policy_chosen_logps"] - plain["policy_chosen_logps"], -0.5 * share)
        torch.testing.assert_close(mixed["policy_rejected_logps"], plain["policy_rejected_logps"])


def test_wpo_weighs_uniform_text_by_one() -> None:
    token_logps = torch.full((2, 5), -math.log(50), dtype=torch.float64)
    log_weight = sequence_log_weight(token_logps, token_logps, torch.arange(5) < torch.tensor([[5], [3]]))

    assert log_weight.tolist() == pytest.approx([0, 0])
    assert wpo_weight(log_weight, log_weight).tolist() == pytest.approx([1, 1])


def test_wpo_weighs_sampled_text_at_most_one_on_average_and_greedy_text_more() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], dtype=torch.float64)
    terms = probs.log() - probs.square().sum(dim=1, keepdim=True).log()
    greedy = terms.amax(dim=1)

    assert bool(((probs * terms).sum(dim=1) <= 0).all())
    assert bool((wpo_weight(greedy, greedy) > 1).all())
    assert wpo_weight(greedy, greedy, clip_weight=True).tolist() == [1, 1]


def test_wpo_is_dpo_times_the_weights_of_both_responses() -> None:
    batch = full_batch()
    (output,) = train_step(METHODS["wpo"], parse_params("wpo", {"beta": 0.1}), batch).outputs

    log_weights = output.metrics["wpo/chosen_log_weight"] + output.metrics["wpo/rejected_log_weight"]
    torch.testing.assert_close(output.weight, log_weights.exp())
    torch.testing.assert_close(output.per_pair, output.weight * torch.tensor(VECTORS["dpo"]["each"]).double())


def test_tr_dpo_is_dpo_with_a_moving_reference() -> None:
    method, moving, fixed = METHODS["tr_dpo"], parse_params("tr_dpo", {}), parse_params("tr_dpo", {"alpha": 0})

    assert same(run("tr_dpo"), run("dpo"))
    assert moving.reference_update() == ReferenceUpdate(every=512, rate=0.6)
    assert method.requirements(moving).outer_loop
    assert fixed.reference_update() is None
    assert not method.requirements(fixed).outer_loop
