import math
from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.losses.adpo import adpo_loss
from madpo.losses.adpo_list import list_cross_entropy, list_target
from madpo.losses.adpo_pl import plackett_luce_terms
from madpo.losses.aot import aot_terms, same_rank
from madpo.losses.apo import apo_down_loss, apo_zero_loss
from madpo.losses.apo_accel import extrapolate
from madpo.losses.bco import bco_pair_loss
from madpo.losses.beta_dpo import batch_beta, draw_pairs, gap_log_score
from madpo.losses.discopop import discopop_loss
from madpo.losses.dpo import dpo_loss
from madpo.losses.exo import exo_pair_loss
from madpo.losses.irpo import irpo_terms, irpo_weight
from madpo.losses.kto import kto_reference_point, kto_terms
from madpo.losses.method import LossBatch, ReferenceUpdate
from madpo.losses.moments import running_moments
from madpo.losses.nca import nca_pair_loss
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.rso import rso_accept
from madpo.losses.sem_dpo import semantic_weight
from madpo.losses.sppo import sppo_loss, win_probabilities
from madpo.losses.updpo import certainty, pessimistic_offset
from madpo.losses.x_adpo_kde import kde_target, smoothed_ranks
from madpo.losses.x_sgdpo import XSgdpoConfig, guided_log_ratio_diff, pilot_masks
from tests.unit.losses.batches import Step, full_batch, gradients, take, train_step

pytestmark = pytest.mark.methods

SPLIT = [[3, 0], [2], [1]]
DELTA = torch.linspace(-30, 30, 61, dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


def step(name: str, batch: LossBatch | None = None, **params: Any) -> Step:
    return train_step(METHODS[name], parse_params(name, params), batch or full_batch())


def trained(name: str, batch: LossBatch, **how: Any) -> tuple[Step, dict[str, Tensor]]:
    params = {key: how.pop(key) for key in list(how) if key not in ("split", "state", "seed", "training")}
    result = train_step(METHODS[name], parse_params(name, params), batch, **how)
    result.loss.backward()
    return result, gradients(batch)


def assert_equal_training(one: tuple[Step, dict[str, Tensor]], other: tuple[Step, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0].loss, other[0].loss, rtol=1e-12, atol=1e-12)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-10, atol=1e-13)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "params", "base", "base_params"),
    [
        ("beta_dpo", {"alpha": 0, "filter_ratio": 0}, "dpo", {}),
        ("alpha_dpo", {"alpha": 0}, "simpo", {"beta": 2.5, "gamma_beta_ratio": 0.6}),
        ("adpo", {"tau": 10, "beta_r": 1}, "rm_soft", {}),
        ("x_spo", {"penalty": 0}, "dpo", {}),
        ("updpo", {"k": 0}, "dpo", {}),
        ("rso", {"beta": 0.1}, "dpo", {}),
        ("rso", {"beta": 0.1, "link": "hinge"}, "hinge", {}),
        ("apo_accel", {}, "dpo", {}),
        ("sem_dpo", {"alpha": 0}, "dpo", {}),
    ],
)
def test_special_cases(name: str, params: dict[str, Any], base: str, base_params: dict[str, Any]) -> None:
    assert_equal_training(trained(name, full_batch(), **params), trained(base, full_batch(), **base_params))


# Running statistics


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


# beta-DPO


def test_beta_grows_with_the_gap_from_its_running_mean() -> None:
    means = double([-100, -1, 0.2, 1, 100])
    floored = [float(batch_beta(mean, 0.2, beta=0.1, alpha=0.6)) for mean in means]
    free = [float(batch_beta(mean, 0.2, beta=0.1, alpha=0.6, min_beta=None)) for mean in means]

    assert floored[2] == pytest.approx(0.1, abs=1e-15)
    assert floored == sorted(floored)
    assert floored[0] == 1e-3
    assert free[0] < 0
    assert free[1:] == floored[1:]


def test_equal_gaps_have_equal_scores() -> None:
    score = gap_log_score(torch.full((5,), 1.7), mean=0.3, std=2.0)

    assert torch.equal(score, score[:1].expand(5))


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, 8), (0.3, 7), (0.9, 1), (0.99, 1), (0.0, 10)])
def test_exactly_the_asked_share_of_pairs_is_kept(ratio: float, kept: int) -> None:
    batch = take(full_batch(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])

    (output,) = step("beta_dpo", batch, filter_ratio=ratio).outputs

    assert output.kept == kept
    assert output.mask is not None
    assert int(output.mask.sum()) == kept


def test_draws_have_the_probabilities_of_drawing_one_after_the_other() -> None:
    probabilities = [0.5, 0.25, 0.15, 0.1]
    expected: Counter[frozenset[int]] = Counter()
    for first, second in permutations(range(4), 2):
        chance = probabilities[first] * probabilities[second] / (1 - probabilities[first])
        expected[frozenset((first, second))] += chance  # type: ignore[assignment]
    generator, draws = torch.Generator().manual_seed(3), 20_000
    log_score = double(probabilities).log() - 1000

    drawn = Counter(frozenset(draw_pairs(log_score, 2, generator).nonzero().flatten().tolist()) for _ in range(draws))

    for pair, chance in expected.items():
        deviation = math.sqrt(chance * (1 - chance) / draws)
        assert drawn[pair] / draws == pytest.approx(chance, abs=4 * deviation)


def test_every_micro_batch_sees_the_same_draw_and_beta() -> None:
    config = parse_params("beta_dpo", {})
    whole = train_step(METHODS["beta_dpo"], config, full_batch(), seed=5)
    parts = train_step(METHODS["beta_dpo"], config, full_batch(), seed=5, split=SPLIT)

    (output,) = whole.outputs
    assert output.mask is not None
    for rows, part in zip(SPLIT, parts.outputs, strict=True):
        assert part.mask is not None
        assert part.kept == output.kept == 3
        assert torch.equal(part.mask, output.mask[rows])
        assert torch.equal(part.metrics["beta_dpo/beta"], output.metrics["beta_dpo/beta"][rows])
    masks = {tuple(step_mask(seed)) for seed in range(20)}
    assert len(masks) > 1


def step_mask(seed: int) -> list[bool]:
    mask = train_step(METHODS["beta_dpo"], parse_params("beta_dpo", {}), full_batch(), seed=seed).outputs[0].mask
    assert mask is not None
    values: list[bool] = mask.tolist()
    return values


def test_only_drawn_pairs_train() -> None:
    (result, found) = trained("beta_dpo", full_batch())

    assert torch.equal(found["policy_chosen_logps"] != 0, result.outputs[0].mask)  # type: ignore[arg-type]


def test_the_published_variants_of_beta() -> None:
    """Gap as reward: alpha acts beta times as strongly. Beta from all pairs: their mean gap, not the drawn ones'."""
    delta = double([2, -1.25, 1, -2.25])
    state = {"mean": double(0.0), "std": double(1.5), "steps": torch.tensor(1000)}

    def beta(**params: Any) -> float:
        config = parse_params("beta_dpo", params)
        result = train_step(METHODS["beta_dpo"], config, full_batch(), state=state, training=False)
        return float(result.outputs[0].metrics["beta_dpo/beta"][0])

    assert beta(filter_ratio=0) == pytest.approx(0.1 * (1 + 0.6 * float(delta.mean())))
    assert beta(filter_ratio=0, gap_scale="reward") == pytest.approx(0.1 * (1 + 0.06 * float(delta.mean())))
    assert beta(beta_from="all") == beta(filter_ratio=0) != beta()


# alpha-DPO


def test_z_is_standardised_over_the_first_batch() -> None:
    z = step("alpha_dpo").outputs[0].metrics["alpha_dpo/z"]

    assert float(z.mean()) == pytest.approx(0, abs=1e-12)
    assert float(z.std()) == pytest.approx(1)


def test_alpha_dpo_has_simpo_s_gradient_at_its_own_margin() -> None:
    result, found = trained("alpha_dpo", full_batch())
    batch = full_batch()
    s = batch.policy_chosen_logps / batch.require("chosen_tokens") - batch.policy_rejected_logps / batch.require(
        "rejected_tokens"
    )
    margin = 0.6 + 0.2 * result.outputs[0].metrics["alpha_dpo/z"]

    expected = -2.5 / batch.require("chosen_tokens") * torch.sigmoid(-2.5 * (s - margin)).detach() / 4
    torch.testing.assert_close(found["policy_chosen_logps"], expected)


def test_the_paper_s_form_is_the_code_s_with_alpha_over_beta() -> None:
    paper = trained("alpha_dpo", full_batch(), form="paper", alpha=0.2)
    code = trained("alpha_dpo", full_batch(), form="code", alpha=0.2 / 2.5)

    assert_equal_training(paper, code)


# ADPO


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


@pytest.mark.parametrize("name", ["adpo_list", "adpo_pl", "x_adpo_kde", "irpo"])
def test_a_shift_of_a_whole_list_changes_nothing(name: str) -> None:
    batch = full_batch()
    shift = double([[3.0], [-40], [0.5], [7]])
    by_policy = replace(batch, list_logps=batch.require("list_logps") + shift)
    by_reference = replace(batch, ref_list_logps=batch.require("ref_list_logps") - shift)

    for shifted in (by_policy, by_reference):
        torch.testing.assert_close(step(name, shifted).loss, step(name, batch).loss)


@pytest.mark.parametrize("name", ["adpo_list", "adpo_pl", "x_adpo_kde", "irpo", "sppo"])
def test_neither_padding_nor_the_order_of_a_list_matters(name: str) -> None:
    params = {"win_probability": "list"} if name == "sppo" else {}
    batch = full_batch()
    order = [2, 0, 3, 1]
    columns = ("list_logps", "ref_list_logps", "list_scores", "list_tokens", "list_mask")
    # Only the third list's zeros, beside its responses, are alike in score; they are padding.
    shuffled = replace(batch, **{column: batch.require(column)[:, order] for column in columns})
    padding = ~batch.require("list_mask")
    other = replace(
        batch,
        list_logps=batch.require("list_logps").detach().masked_fill(padding, -777.0).requires_grad_(),
        list_scores=batch.require("list_scores").masked_fill(padding, 1e4),
    )

    expected = step(name, batch, **params).outputs[0].per_pair
    torch.testing.assert_close(step(name, shuffled, **params).outputs[0].per_pair, expected)
    torch.testing.assert_close(step(name, other, **params).outputs[0].per_pair, expected)


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


# Stable preference optimisation


def bounded_batch(by: float) -> LossBatch:
    """A batch whose chosen responses have lost `by` nats per token to the reference."""
    batch = full_batch()
    tokens = batch.require("chosen_tokens").double()
    return replace(batch, ref_chosen_logps=batch.policy_chosen_logps.detach() + by * tokens)


@pytest.mark.parametrize("by", [-0.3, 0.05, 0.3])
def test_the_likelihood_is_bounded_over_the_whole_batch(by: float) -> None:
    whole, parts = bounded_batch(by), bounded_batch(by)
    params = {"penalty": 2.0, "slack": 0.1}
    one, other = trained("x_spo", whole, **params), trained("x_spo", parts, split=SPLIT, **params)
    base = trained("dpo", bounded_batch(by))
    violation = max(0.0, by - 0.1)

    assert_equal_training(one, other)
    assert (one[0].loss - base[0].loss).item() == pytest.approx(2 * violation, abs=1e-12)
    if violation == 0:
        assert_equal_training(one, base)
    else:
        extra = one[1]["policy_chosen_logps"] - base[1]["policy_chosen_logps"]
        torch.testing.assert_close(extra, torch.full_like(extra, -2 / 57))


def test_the_likelihood_may_be_bounded_by_the_best_so_far() -> None:
    method, config = METHODS["x_spo"], parse_params("x_spo", {"bound": "best"})
    better = train_step(method, config, bounded_batch(-0.3))
    batch = full_batch()
    lost = replace(batch, policy_chosen_logps=(batch.policy_chosen_logps.detach() - 5.7).requires_grad_())
    worse = train_step(method, config, lost, state=better.state, split=SPLIT)

    nll = 71.75 / 57
    assert better.outputs[0].aux["likelihood"].item() == 0
    assert better.state["best_nll"].item() == worse.state["best_nll"].item() == pytest.approx(nll)
    assert sum(part.aux["likelihood"].item() for part in worse.outputs) == pytest.approx(4 * 5.7 / 57)
    assert train_step(method, config, bounded_batch(0.3)).state["best_nll"].item() == pytest.approx(nll - 0.3)


def test_the_positive_term_never_lowers_the_loss() -> None:
    with_term, base = step("x_spo", positive_weight=3).outputs[0].per_pair, step("dpo").outputs[0].per_pair

    assert bool((with_term >= base).all())
    assert (with_term > base).tolist() == [False, True, False, True]


# Self-guided DPO


def test_without_a_pilot_it_is_dpo() -> None:
    found = step("x_sgdpo", chosen_ratio=0, rejected_ratio=0).outputs[0].per_pair

    torch.testing.assert_close(found, step("dpo").outputs[0].per_pair)


def test_a_pilot_of_all_rejected_tokens_leaves_the_rejected_response_out() -> None:
    batch = full_batch()
    result, found = trained("x_sgdpo", batch, chosen_ratio=1, rejected_ratio=1)

    expected = dpo_loss(2 * batch.chosen_log_ratio.detach(), beta=0.1)
    torch.testing.assert_close(result.outputs[0].per_pair.detach(), expected)
    assert not found["rejected_token_logps"].any()


@pytest.mark.parametrize("pilot", ["independent", "shared"])
def test_pilots_have_their_size_and_lie_on_the_response(pilot: Any) -> None:
    batch = full_batch()
    masks = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    for ratios in ((0.5, 0.5), (0.3, 0.7), (0.0, 1.0)):
        config = XSgdpoConfig(chosen_ratio=ratios[0], rejected_ratio=ratios[1], pilot=pilot)
        pilots = pilot_masks(*masks, torch.arange(4), config)

        for mask, drawn, ratio in zip(masks, pilots, ratios, strict=True):
            sizes = [math.ceil(round(ratio * tokens, 9)) for tokens in mask.sum(dim=1).tolist()]
            assert drawn.sum(dim=1).tolist() == sizes
            assert not (drawn & ~mask).any()


def test_shared_pilots_take_the_same_places_of_equally_long_responses() -> None:
    mask = torch.ones(8, 20, dtype=torch.bool)

    shared = pilot_masks(mask, mask, torch.arange(8), XSgdpoConfig(pilot="shared"))
    independent = pilot_masks(mask, mask, torch.arange(8), XSgdpoConfig())

    assert torch.equal(*shared)
    assert not torch.equal(*independent)
    assert len({tuple(row.tolist()) for row in shared[0]}) == 8


def test_a_pilot_depends_on_its_pair_alone() -> None:
    batch = full_batch()
    chosen, rejected = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    seeds, config = torch.tensor([11, 5, 7, 2**61]), XSgdpoConfig()
    whole = pilot_masks(chosen, rejected, seeds, config)

    # Cut to the longest response of the two, and padded on the left.
    part = pilot_masks(chosen[[2, 0], :12], rejected[[2, 0], :12], seeds[[2, 0]], config)
    shifted = pilot_masks(chosen.roll(3, 1)[:1, :20], rejected.roll(3, 1)[:1, :20], seeds[:1], config)

    for cut, moved, full in zip(part, shifted, whole, strict=True):
        assert torch.equal(cut, full[[2, 0], :12])
        assert torch.equal(moved, full.roll(3, 1)[:1, :20])


def test_the_pilot_counts_chosen_tokens_twice_and_rejected_ones_not_at_all() -> None:
    chosen, rejected = double([[1, 2, 4]]), double([[8, 16, 32]])
    pilots = torch.tensor([[True, False, True]]), torch.tensor([[False, True, False]])

    assert float(guided_log_ratio_diff(chosen, rejected, *pilots)) == (1 + 2 + 4) + (1 + 4) - (8 + 16 + 32) + 16


def test_a_split_batch_draws_the_same_pilots() -> None:
    assert_equal_training(
        trained("x_sgdpo", full_batch(), split=SPLIT, seed=4), trained("x_sgdpo", full_batch(), seed=4)
    )


def test_pilots_change_from_step_to_step() -> None:
    config = parse_params("x_sgdpo", {})

    losses = [train_step(METHODS["x_sgdpo"], config, full_batch(), seed=seed).loss.item() for seed in (0, 0, 1)]

    assert losses[0] == losses[1] != losses[2]


# Uncertainty, semantic distance


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


# SPPO, IRPO, RSO


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


def test_irpo_of_a_relevant_and_an_irrelevant_response_is_half_of_dpo() -> None:
    mask = torch.ones(61, 2, dtype=torch.bool)
    weight = irpo_weight(double([[1, 0]]).expand(61, 2), mask)
    terms = irpo_terms(torch.stack([DELTA, torch.zeros_like(DELTA)], dim=1), weight, mask, beta=0.3)

    torch.testing.assert_close(terms.mean(dim=1), dpo_loss(DELTA, beta=0.3) / 2)


def test_irpo_weights() -> None:
    relevance = double([[1, 0, 2, -3]])

    assert not irpo_terms(relevance, irpo_weight(torch.zeros(1, 4), ALL), ALL, beta=1.0).any()
    log_discount = irpo_weight(relevance, ALL, weighting="log_discount")[0].tolist()
    assert log_discount == pytest.approx([1 / math.log2(3), 0.5, 1, 1 / math.log2(5)])
    assert irpo_weight(relevance, ALL, weighting="gain_discount")[0].tolist() == [0.5, 0, 3, 0]


def test_rso_accepts_everything_when_hot_and_the_best_when_cold() -> None:
    rewards = double([[1, 0.2, 1.4], [-5, -3, -4]])

    torch.testing.assert_close(rso_accept(rewards, temperature=1e9), torch.ones_like(rewards))
    assert rso_accept(rewards, temperature=1e-3).round().tolist() == [[0, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(rso_accept(rewards + 9, temperature=0.5), rso_accept(rewards, temperature=0.5))


# Accelerated preference optimisation


def test_extrapolated_logits_are_the_momentum_of_log_probs() -> None:
    previous, policy = double([0.2, -0.1, 0.4]), double([0.5, -0.3, 0.1])
    old, new = previous.softmax(dim=0), policy.softmax(dim=0)

    moved = extrapolate(policy, previous, alpha=0.3).softmax(dim=0)

    torch.testing.assert_close(moved, new * (new / old) ** 0.3 / (new * (new / old) ** 0.3).sum())
    assert torch.equal(extrapolate(policy, previous, alpha=0.0), policy)
    update = parse_params("apo_accel", {"iteration_steps": 5}).reference_update()
    assert update == ReferenceUpdate(every=5, rate=1.0, extrapolation=0.3)


# KTO


def test_kto_has_one_reference_point_for_all_micro_batches() -> None:
    config = parse_params("kto", {"desirable_weight": 1.2})
    whole, parts = full_batch(), full_batch()
    one, other = train_step(METHODS["kto"], config, whole), train_step(METHODS["kto"], config, parts, split=SPLIT)
    one.loss.backward()
    other.loss.backward()

    torch.testing.assert_close(other.loss, one.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(parts)["policy_chosen_logps"], gradients(whole)["policy_chosen_logps"])
    points = torch.cat([part.metrics["kto/reference_point"] for part in other.outputs])
    assert points.tolist() == pytest.approx([0.15] * 4)


def test_kto_terms_are_bounded_and_its_reference_point_not_negative() -> None:
    point = kto_reference_point(double([-3.0, 1.0]))
    assert float(point) == 0
    for terms in kto_terms(DELTA, DELTA, double(0.7), beta=0.5):
        assert bool(((terms > 0) & (terms < 1)).all())
    desirable, undesirable = kto_terms(DELTA, -DELTA, double(0.0), beta=0.5)
    torch.testing.assert_close(desirable, undesirable)


def test_kto_weights_each_kind() -> None:
    parts = [
        step("kto", desirable_weight=d, undesirable_weight=u).outputs[0].per_pair for d, u in ((1, 1), (3, 1), (1, 3))
    ]

    torch.testing.assert_close(parts[1] + parts[2], 4 * parts[0])
    assert not torch.equal(parts[1], parts[2])


# Losses with their own links


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


# AOT


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_of_one_pair_is_dpo(name: str) -> None:
    for row in range(4):
        one, other = take(full_batch(), [row]), take(full_batch(), [row])
        torch.testing.assert_close(step(name, one, beta=0.1).loss, step("dpo", other).loss)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("split", [None, SPLIT])
def test_aot_is_the_sorted_batch(name: str, split: Any) -> None:
    """Value and gradient of the published form, which sorts with gradient over the whole batch."""
    batch, sorted_batch = full_batch(), full_batch()
    result, found = trained(name, batch, beta=0.3, split=split)
    if name == "aot":
        policy = sorted_batch.policy_chosen_logps - sorted_batch.policy_rejected_logps
        reference = sorted_batch.require("ref_chosen_logps") - sorted_batch.require("ref_rejected_logps")
        terms = aot_terms(policy, reference, beta=0.3)
    else:
        terms = aot_terms(sorted_batch.chosen_log_ratio, sorted_batch.rejected_log_ratio, beta=0.3)
    terms.mean().backward()

    torch.testing.assert_close(result.loss, terms.mean(), rtol=1e-12, atol=0)
    for side, gradient in gradients(sorted_batch).items():
        torch.testing.assert_close(found[side], gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [[1, 0, 3, 2], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_aot_does_not_see_the_order_of_the_batch_nor_unpaired_aot_the_pairing(order: list[int]) -> None:
    batch = full_batch()
    for name in ("aot", "aot_unpaired"):
        torch.testing.assert_close(step(name, take(batch, order)).loss, step(name, batch).loss)
    rejected = take(batch, order)
    crossed = replace(
        batch, policy_rejected_logps=rejected.policy_rejected_logps, ref_rejected_logps=rejected.ref_rejected_logps
    )
    torch.testing.assert_close(step("aot_unpaired", crossed).loss, step("aot_unpaired", batch).loss)


def test_partners_have_the_same_rank() -> None:
    assert same_rank(double([3, -1, 7, 2]), double([10, 40, 20, 30])).tolist() == [30, 10, 40, 20]
    assert same_rank(double([5, 5, 0]), double([1, 2, 3])).tolist() == [2, 3, 1]
