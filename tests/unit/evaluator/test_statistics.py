"""Means, accuracies and paired comparisons of evaluations."""

import math

import numpy as np
import pytest

from madpo_evaluator.statistics import compare, estimate_accuracy, estimate_mean


def test_mean_and_normal_interval_agree_with_the_closed_form() -> None:
    estimate = estimate_mean([[1.0], [2.0], [3.0], [6.0]])

    assert estimate.mean == 3.0
    assert estimate.std == pytest.approx(math.sqrt(14 / 3))
    half_width = 1.959964 * math.sqrt(14 / 3) / 2
    assert estimate.ci == pytest.approx((3.0 - half_width, 3.0 + half_width))


def test_samples_of_one_prompt_do_not_count_as_independent() -> None:
    single = estimate_mean([[0.0], [1.0], [4.0]])
    repeated = estimate_mean([[0.0] * 8, [1.0] * 8, [4.0] * 8])

    assert repeated.ci == pytest.approx(single.ci)


def test_one_prompt_has_a_mean_but_no_interval() -> None:
    estimate = estimate_mean([[1.0, 3.0]])
    comparison = compare([[1.0, 3.0]], [[0.0, 4.0]])

    assert (estimate.mean, estimate.ci) == (2.0, None)
    assert (comparison.win_rate, comparison.win_rate_ci, comparison.difference_ci) == (0.5, None, None)


def test_the_mean_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    draws = rng.normal(loc=0.3, size=(1000, 100, 1))
    intervals = [estimate_mean(draw).ci for draw in draws]

    covered = np.mean([ci is not None and ci[0] <= 0.3 <= ci[1] for ci in intervals])
    assert 0.93 <= covered <= 0.97


def test_accuracy_counts_ties_half_and_carries_the_wilson_interval() -> None:
    accuracy = estimate_accuracy([1.0] * 45 + [-2.0] * 45 + [0.0] * 10)

    assert accuracy.accuracy == 0.5
    assert accuracy.ci == pytest.approx((0.403832, 0.596168), abs=1e-6)  # Wilson, 50 of 100
    assert accuracy.pairs == 100


def test_unanimous_pairs_still_leave_room_for_doubt() -> None:
    accuracy = estimate_accuracy([0.1] * 10)

    assert accuracy.accuracy == 1.0
    assert accuracy.ci == pytest.approx((1 / (1 + 1.959964**2 / 10), 1.0), abs=1e-6)


def test_a_model_compared_with_itself_wins_half_and_differs_by_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))

    comparison = compare(values, values)

    assert (comparison.win_rate, comparison.win_rate_ci) == (0.5, (0.5, 0.5))
    assert (comparison.difference, comparison.difference_ci) == (0.0, (0.0, 0.0))


def test_a_comparison_pairs_samples_and_resamples_prompts() -> None:
    rng = np.random.default_rng(3)
    prompt_effect = rng.normal(scale=10.0, size=(400, 1))
    noise = rng.normal(size=(400, 2))

    comparison = compare(prompt_effect + 0.5 + noise, prompt_effect)

    per_prompt = (0.5 + noise).mean(axis=1)
    standard_error = per_prompt.std(ddof=1) / math.sqrt(400)
    assert comparison.difference == pytest.approx(per_prompt.mean())
    assert comparison.difference_ci == pytest.approx(
        (per_prompt.mean() - 1.96 * standard_error, per_prompt.mean() + 1.96 * standard_error), abs=0.2 * standard_error
    )
    assert comparison.win_rate == pytest.approx((noise > -0.5).mean())
    assert comparison == compare(prompt_effect + 0.5 + noise, prompt_effect)


def test_the_bootstrap_of_many_prompts_is_done_in_blocks_and_stays_right() -> None:
    difference = np.random.default_rng(5).normal(loc=0.1, size=(5000, 1))

    comparison = compare(difference, np.zeros_like(difference))

    half_width = 1.96 * difference.std() / math.sqrt(5000)
    assert comparison.difference_ci is not None
    low, high = comparison.difference_ci
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.08)
