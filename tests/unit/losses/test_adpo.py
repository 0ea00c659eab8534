"""ADPO: soft labels of pairs, targets and rankings of lists, anchors."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from madpo.losses.adpo import adpo_loss
from madpo.losses.adpo_list import list_cross_entropy, list_target
from madpo.losses.adpo_pl import plackett_luce_terms
from madpo.losses.dpo import dpo_loss
from madpo.losses.method import ReferenceUpdate
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.x_adpo_kde import kde_target, smoothed_ranks
from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import ALL, DELTA, assert_equal_training, double, step, trained


def test_averaged_log_probs_of_equally_long_responses_are_a_higher_temperature() -> None:
    tens = torch.full((4,), 10)
    pairs = replace(full_batch(), chosen_tokens=tens, rejected_tokens=tens)

    assert_equal_training(trained("adpo", pairs, average_log_prob=True), trained("adpo", full_batch(), tau=10))
    for name in ("adpo_list", "adpo_pl", "x_adpo_kde"):
        lists = replace(full_batch(), list_tokens=torch.full((4, 4), 10))
        assert_equal_training(trained(name, lists, average_log_prob=True), trained(name, full_batch(), tau=10))


def test_adpo_with_certain_labels_is_dpo_and_with_less_certain_ones_smoothed() -> None:
    for smoothing in (0.0, 0.1, 0.4):
        found = adpo_loss(DELTA / 10, torch.full_like(DELTA, 1 - smoothing))

        torch.testing.assert_close(found, dpo_loss(DELTA, beta=0.1, label_smoothing=smoothing))


def test_lists_of_two_are_dpo() -> None:
    scores, mask = torch.stack([DELTA / 10, torch.zeros_like(DELTA)], dim=1), torch.ones(61, 2, dtype=torch.bool)
    first, order = double([[1, 0]]).expand(61, 2), double([[3, -1]]).expand(61, 2)

    expected = dpo_loss(DELTA, beta=0.1)
    torch.testing.assert_close(list_cross_entropy(scores, first, mask), expected)
    torch.testing.assert_close(plackett_luce_terms(scores, order, mask).squeeze(1), expected)
    soft = torch.stack([torch.full_like(DELTA, 0.9), torch.full_like(DELTA, 0.1)], dim=1)
    torch.testing.assert_close(list_cross_entropy(scores, soft, mask), adpo_loss(DELTA / 10, soft[:, 0]))


def test_the_list_s_gradient_is_p_minus_q_over_tau_and_sums_to_zero() -> None:
    batch = full_batch()
    _, found = trained("adpo_list", batch, tau=0.8)
    mask = batch.require("list_mask")
    log_ratio = (batch.require("list_logps") - batch.require("ref_list_logps")).detach()
    p = (log_ratio / 0.8).masked_fill(~mask, -math.inf).softmax(dim=1)
    q = list_target(batch.require("list_scores"), mask, beta_r=0.5, standardize=True)

    torch.testing.assert_close(found["list_logps"], (p - q) / 0.8 / 4)
    torch.testing.assert_close(found["list_logps"].sum(dim=1), torch.zeros(4, dtype=torch.float64))
    assert bool((found["list_logps"][~mask] == 0).all())


def test_the_list_loss_is_least_at_the_target() -> None:
    q = list_target(double([[1, 0, 2, -1]]), ALL, beta_r=0.5)
    entropy = -(q * q.log()).sum()
    at_target = (q.log() + 17).requires_grad_()

    least = list_cross_entropy(at_target, q, ALL)
    least.sum().backward()

    torch.testing.assert_close(least.squeeze(), entropy)
    torch.testing.assert_close(at_target.grad, torch.zeros_like(q))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = 5 * torch.randn(1, 4, dtype=torch.float64, generator=generator)
        divergence = (q * (q.log() - scores.log_softmax(dim=1))).sum()
        torch.testing.assert_close(list_cross_entropy(scores, q, ALL).squeeze() - entropy, divergence)
        assert divergence > 0


def test_without_an_anchor_and_with_one_right_answer_it_is_classification() -> None:
    s, right = double([[-3, -1, -2, -9]]), torch.tensor([2])

    found = list_cross_entropy(s, torch.nn.functional.one_hot(right, 4).double(), ALL)

    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(s, right, reduction="none"))


def test_at_the_anchor_every_response_has_an_equal_share() -> None:
    batch = full_batch()
    at_anchor = replace(batch, list_logps=batch.require("ref_list_logps").clone().requires_grad_())
    sizes = batch.require("list_mask").sum(dim=1).double()

    torch.testing.assert_close(step("adpo_list", at_anchor).outputs[0].per_pair, sizes.log())
    ranking = step("adpo_pl", at_anchor, reduction="sum").outputs[0].per_pair
    torch.testing.assert_close(ranking, torch.lgamma(sizes + 1))


def test_rankings_count_from_the_top() -> None:
    scores, rewards = double([[0.6, -0.6, 0.3, -2.5]]), double([[1, 0, 2, -1]])
    terms = plackett_luce_terms(scores, rewards, ALL)[0]
    by_hand = [2, 0, 1, 3]
    v = scores[0][by_hand]

    for place in range(3):
        torch.testing.assert_close(terms[place], v[place:].logsumexp(dim=0) - v[place])
    batch = full_batch()
    top = step("adpo_pl", batch, top_k=1).outputs[0].per_pair
    log_ratio = (batch.require("list_logps") - batch.require("ref_list_logps"))[0].detach()
    torch.testing.assert_close(top[0], log_ratio.logsumexp(dim=0) - log_ratio[2])
    torch.testing.assert_close(step("adpo_pl", batch, top_k=9).loss, step("adpo_pl", batch).loss)


def test_optional_terms_of_the_list_loss() -> None:
    scores, rewards = double([[0.6, -0.6, 0.3, -2.5]]), double([[1, 0, 2, -1]])
    q = list_target(rewards, ALL, beta_r=0.5)
    smoothed = list_target(rewards, ALL, beta_r=0.5, label_smoothing=0.1)
    p = scores.softmax(dim=1)

    torch.testing.assert_close(smoothed, 0.9 * q + 0.025)
    poly = list_cross_entropy(scores, q, ALL, poly_weight=0.3)
    torch.testing.assert_close(poly, list_cross_entropy(scores, q, ALL) + 0.3 * (1 - (p * q).sum(dim=1)))
    assert gradients_are_zero_beyond(clamp=0.1)


def gradients_are_zero_beyond(*, clamp: float) -> bool:
    batch = full_batch()
    _, found = trained("adpo", batch, score_clamp=clamp)
    return not found["policy_chosen_logps"].any()


def test_equal_scores_give_even_targets() -> None:
    for value in (0.1, -3.0, 1e6):
        scores = torch.full((1, 4), value)
        for target in (list_target(scores, ALL, beta_r=0.3, standardize=True), kde_target(scores, ALL, beta_r=1)):
            torch.testing.assert_close(target, torch.full((1, 4), 0.25), rtol=0, atol=1e-7)


def test_standardised_scores_and_smoothed_ranks_have_no_scale() -> None:
    rewards = double([[1, 0, 2.5, -1]])
    for target in (
        lambda r: list_target(r, ALL, beta_r=0.5, standardize=True),
        lambda r: kde_target(r, ALL, beta_r=1),
    ):
        torch.testing.assert_close(target(7 * rewards - 3), target(rewards), rtol=1e-6, atol=0)


def test_smoothed_ranks_rise_with_the_score_and_bound_an_outlier() -> None:
    rewards = double([[0.1, 0.3, 0.2, 9.0]])
    ranks = [smoothed_ranks(rewards.clone().index_fill(1, torch.tensor([3]), top), ALL) for top in (9.0, 1e3, 1e6)]

    for each in ranks:
        assert each.rank[0].argsort().tolist() == [0, 2, 1, 3]
        assert float(each.rank.max()) < 1 - 1 / 8
    assert kde_target(rewards, ALL, beta_r=1)[0, 3] < 0.8 < list_target(rewards, ALL, beta_r=1)[0, 3]


@pytest.mark.parametrize("name", ["adpo", "adpo_list", "adpo_pl", "x_adpo_kde"])
def test_anchors(name: str) -> None:
    def update(**params: Any) -> ReferenceUpdate | None:
        return parse_params(name, params).reference_update()

    assert update() is None
    assert not METHODS[name].requirements(parse_params(name, {})).outer_loop
    assert METHODS[name].requirements(parse_params(name, {"anchor": "ema"})).outer_loop
    assert update(anchor="on_policy") == ReferenceUpdate(every=1, rate=1.0)
    assert update(anchor="on_policy", anchor_every=8) == ReferenceUpdate(every=8, rate=1.0)
    assert update(anchor="kl", kl_threshold=0.2) == ReferenceUpdate(every=1, rate=1.0, kl_threshold=0.2)
    ema = update(anchor="ema")
    assert ema is not None
    assert (ema.every, ema.rate, ema.kl_threshold) == (1, pytest.approx(0.01), None)
