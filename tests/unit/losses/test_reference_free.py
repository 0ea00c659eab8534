import math
from dataclasses import replace

import pytest
import torch

from madpo.losses.alphapo import alphapo_reward
from madpo.losses.method import requirement_names
from madpo.losses.orpo import log_odds_ratio
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.slic import slic_loss
from madpo.losses.terms import average_logps, log1mexp, max_exponent
from tests.unit.losses.batches import full_batch
from tests.unit.losses.test_dpo_family import run, same, slope

LOGPS = torch.linspace(-8, -0.01, 60, dtype=torch.float64)


@pytest.mark.parametrize("name", ["simpo", "alphapo", "cpo", "orpo", "tpo", "tpo_l", "slic"])
def test_no_reference_is_asked_for(name: str) -> None:
    assert "reference" not in requirement_names(METHODS[name].requirements(parse_params(name, {})))


def test_simpo_of_equal_lengths_without_margin_is_reference_free_dpo() -> None:
    lengths = torch.full((4,), 5)
    batch = replace(full_batch(), chosen_tokens=lengths, rejected_tokens=lengths)

    assert same(run("simpo", batch, beta=2.0, gamma_beta_ratio=0), run("dpo", beta=0.4, reference_free=True))


def test_the_gradient_of_simpo_is_spread_over_the_tokens() -> None:
    batch = full_batch()
    _, gradient = run("simpo", batch, beta=2.5, gamma_beta_ratio=0.5)

    chosen, rejected = batch.require("chosen_tokens"), batch.require("rejected_tokens")
    s = (batch.policy_chosen_logps / chosen - batch.policy_rejected_logps / rejected).detach()
    doubt = torch.sigmoid(-2.5 * (s - 0.5)) / 4
    torch.testing.assert_close(gradient["policy_chosen_logps"], -2.5 / chosen * doubt)
    torch.testing.assert_close(gradient["policy_rejected_logps"], 2.5 / rejected * doubt)


def test_the_hinge_of_simpo_ends_one_above_the_margin() -> None:
    batch = full_batch()
    far = replace(batch, policy_chosen_logps=(batch.policy_chosen_logps.data + 40).requires_grad_())

    loss, gradient = run("simpo", far, link="hinge")

    assert loss == 0
    assert not gradient["policy_chosen_logps"].any()


def test_alphapo_goes_over_into_simpo() -> None:
    assert same(run("alphapo", alpha=0.0), run("simpo"))
    torch.testing.assert_close(run("alphapo", alpha=1e-8)[0], run("simpo")[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("alpha", [-2.0, -1.0, 0.25, 2.0])
def test_the_shaped_reward_rises_with_slope_one_at_certainty(alpha: float) -> None:
    reward = alphapo_reward(LOGPS, alpha=alpha)

    assert bool((reward.diff() > 0).all())
    torch.testing.assert_close(reward, (1 - LOGPS.exp() ** -alpha) / alpha)
    assert float(slope(lambda q: alphapo_reward(q, alpha=alpha), torch.zeros(1))) == pytest.approx(1)


def test_cpo_without_likelihood_is_reference_free_dpo() -> None:
    assert same(run("cpo", sft_weight=0.0), run("dpo", reference_free=True))


def test_tpo_with_the_chosen_response_as_gold_is_cpo() -> None:
    batch = full_batch()
    golden = replace(batch, gold_logps=batch.policy_chosen_logps, gold_tokens=batch.chosen_tokens)

    loss, gradient = run("tpo", golden, beta=0.1)
    expected_loss, expected = run("cpo", beta=0.1)

    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient["policy_chosen_logps"], expected["policy_chosen_logps"])


def test_tpo_l_without_gold_is_simpo() -> None:
    assert same(run("tpo_l", beta=2.0, gamma=1.0, sft_weight=0), run("simpo", beta=2.0, gamma_beta_ratio=0.5))


@pytest.mark.parametrize("name", ["tpo", "tpo_l"])
def test_without_its_likelihood_no_gold_response_is_needed(name: str) -> None:
    method = METHODS[name]

    assert {"gold", "global_batch"} <= set(requirement_names(method.requirements(parse_params(name, {}))))
    without = requirement_names(method.requirements(parse_params(name, {"sft_weight": 0})))
    assert not {"gold", "global_batch"} & set(without)


def test_orpo_compares_odds() -> None:
    chosen, rejected = LOGPS, LOGPS.flip(0)
    odds = [math.exp(q) / -math.expm1(q) for q in chosen.tolist()]

    expected = [math.log(one / other) for one, other in zip(odds, reversed(odds), strict=True)]
    assert log_odds_ratio(chosen, rejected).tolist() == pytest.approx(expected, abs=1e-12)


def test_certain_responses_have_finite_odds() -> None:
    certain = torch.zeros(1, requires_grad=True)
    ratio = log_odds_ratio(certain, torch.full((1,), -1.0))
    ratio.backward()

    assert bool(ratio.isfinite())
    assert certain.grad is not None
    assert bool(certain.grad.isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log1mexp_is_accurate_at_both_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e-12, -1e-7, -0.1, -0.69, -0.7, -5.0, -30.0, -100.0], dtype=dtype)
    expected = [math.log(-math.expm1(v)) if v > -0.5 else math.log1p(-math.exp(v)) for v in x.tolist()]

    torch.testing.assert_close(log1mexp(x), torch.tensor(expected, dtype=dtype))
    assert bool(slope(log1mexp, x).isfinite().all())


def test_slic_trains_until_the_margin_and_its_target_throughout() -> None:
    diff = torch.tensor([0.5, 1.5], dtype=torch.float64)

    assert slope(lambda d: slic_loss(d, delta=1.0), diff).tolist() == [-1, 0]
    _, chosen = run("slic", sft_weight=0.1)
    _, gold = run("slic", sft_weight=0.1, sft_target="gold")
    _, alone = run("slic", sft_weight=0.0)
    torch.testing.assert_close(chosen["policy_chosen_logps"], alone["policy_chosen_logps"] - 0.1 / 4)
    torch.testing.assert_close(gold["policy_chosen_logps"], alone["policy_chosen_logps"])
    assert gold["gold_logps"].tolist() == pytest.approx([-0.1 / 4] * 4)


def test_an_empty_response_counts_as_one_token() -> None:
    assert average_logps(torch.tensor([-3.0, -3.0]), torch.tensor([0, 2])).tolist() == [-3, -1.5]


def test_exponents_fit_their_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values = torch.zeros(1, dtype=dtype)
        assert bool((values + max_exponent(values)).exp().isfinite())
