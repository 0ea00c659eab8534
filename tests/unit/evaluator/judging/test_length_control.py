"""Length-controlled win rates: what they take away, and what they leave."""

import numpy as np
import pytest

from madpo_evaluator.judging.length_control import length_controlled_win_rate

PROMPTS = np.arange(400)


def drawn(theta: float, phi: float, lengths: np.ndarray, seed: int = 0) -> np.ndarray:
    """Preferences by the model that is fitted."""
    z = np.tanh(lengths / lengths.std())
    return (np.random.default_rng(seed).random(len(lengths)) < 1 / (1 + np.exp(-theta - phi * z))).astype(float)


def test_a_judge_who_only_likes_length_finds_no_difference_at_equal_length() -> None:
    lengths = np.random.default_rng(1).normal(100, 100, 400)
    preferences = drawn(0.0, 2.0, lengths)

    rate, interval = length_controlled_win_rate(preferences, lengths, PROMPTS)

    assert interval is not None
    assert preferences.mean() > 0.6
    assert rate == pytest.approx(0.5, abs=0.08)
    assert interval[0] < 0.5 < interval[1]


def test_without_an_influence_of_length_it_is_the_win_rate() -> None:
    lengths = np.random.default_rng(2).normal(0, 100, 400)
    preferences = drawn(0.8, 0.0, lengths)

    rate, _ = length_controlled_win_rate(preferences, lengths, PROMPTS)

    assert rate == pytest.approx(preferences.mean(), abs=0.02)


def test_it_is_the_fit_that_maximises_the_penalised_likelihood() -> None:
    lengths = np.random.default_rng(3).normal(20, 50, 60)
    preferences = np.random.default_rng(4).choice([0.0, 0.25, 0.5, 1.0], 60)
    z = np.tanh(lengths / lengths.std())

    rate, _ = length_controlled_win_rate(preferences, lengths, np.arange(60))

    def loss(theta: float, phi: float) -> float:
        logits = theta + phi * z
        return float((np.logaddexp(0, logits) - preferences * logits).sum() + phi**2 / 2)

    theta = float(np.log(rate / (1 - rate)))
    phi = min(np.linspace(-3, 3, 2001), key=lambda value: loss(theta, value))
    least = loss(theta, phi)
    assert all(loss(theta + step, phi) > least for step in (-0.05, 0.05))


@pytest.mark.parametrize("won", [0.0, 1.0])
def test_who_wins_always_wins_at_equal_length_too(won: float) -> None:
    lengths = np.arange(10.0)
    assert length_controlled_win_rate([won] * 10, lengths, np.arange(10)) == (won, (won, won))


def test_lengths_that_decide_alone_leave_finite_rates() -> None:
    lengths = np.array([-2.0, -1.0, 1.0, 2.0] * 5)
    rate, interval = length_controlled_win_rate((lengths > 0).astype(float), lengths, np.arange(20))

    assert rate == pytest.approx(0.5)
    assert interval is not None
    assert 0 <= interval[0] <= interval[1] <= 1


def test_equal_lengths_explain_nothing() -> None:
    rate, _ = length_controlled_win_rate([1.0, 0.5, 0.0, 1.0], [3.0] * 4, np.arange(4))
    assert rate == pytest.approx(0.625)


def test_a_prompt_counts_once_however_often_it_was_answered() -> None:
    rate, interval = length_controlled_win_rate([1.0, 1.0, 1.0, 0.0], [0.0] * 4, [7, 7, 7, 9])
    alone = length_controlled_win_rate([1.0, 0.0], [0.0, 0.0], [7, 7])

    assert rate == pytest.approx(0.5)
    assert interval is not None
    assert alone == (pytest.approx(0.5), None)
