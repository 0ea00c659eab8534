"""Which responses are compared."""

import math
from collections import Counter
from random import Random

import pytest

from madpo.errors import InvalidArgumentError
from madpo.pairing.registry import RULES, get_rule, parse_rule_params

REWARDS = [0.5, 2.0, -1.0, 2.0, 0.0]


def choose(name: str, rewards: list[float] = REWARDS, *, seed: int = 0, **params: object) -> list[tuple[int, int]]:
    config = parse_rule_params(name, params, path="pairing")
    return list(get_rule(name, path="pairing").choose(config, rewards, Random(seed)))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_names_different_responses_and_is_a_function_of_its_chance(name: str) -> None:
    for seed in range(20):
        found = choose(name, seed=seed)

        assert found == choose(name, seed=seed)
        assert all(first != second and max(first, second) < len(REWARDS) for first, second in found)
        assert len({frozenset(couple) for couple in found}) == len(found)


@pytest.mark.parametrize("name", RULES)
def test_two_responses_are_enough_for_a_rule(name: str) -> None:
    assert [set(couple) for couple in choose(name, [3.0, 1.0])] == [{0, 1}]


def test_the_best_is_compared_with_the_worst() -> None:
    assert choose("best_vs_worst") == [(1, 2)]


def test_random_couples_are_all_as_likely_and_different() -> None:
    seen = Counter(frozenset(choose("random_pair", seed=seed)[0]) for seed in range(4000))

    assert len(seen) == math.comb(5, 2)
    assert max(seen.values()) < 1.3 * 400
    assert len(choose("random_pair", pairs=3)) == 3
    assert len(choose("random_pair", pairs=2016)) == math.comb(5, 2)


def test_only_rewards_that_are_far_apart_are_compared() -> None:
    assert {frozenset(couple) for couple in choose("threshold", margin=2.5, pairs=9)} == {
        frozenset({1, 2}),
        frozenset({3, 2}),
    }
    assert choose("threshold", margin=3.1) == []


def test_a_list_is_all_of_them_or_nothing() -> None:
    assert len(choose("all_as_list")) == math.comb(5, 2)
    assert choose("all_as_list", fewest=6) == []
    assert choose("all_as_list", [1.0, 1.0, 1.0]) == []


def test_the_nearest_rewards_are_those_to_have_labelled() -> None:
    assert choose("least_sure", pairs=2) == [(1, 3), (0, 4)]


def test_rejection_sampling_accepts_by_the_rule_of_its_paper() -> None:
    cold = [choose("rejection", [0.0, 5.0, 4.0, 1.0], seed=seed, temperature=0.01)[0] for seed in range(50)]
    hot = Counter(
        frozenset(choose("rejection", [0.0, 5.0, 4.0, 1.0], seed=seed, temperature=1e9)[0]) for seed in range(50)
    )

    # Towards 0 the best is accepted, then the best of those left; towards infinity whoever comes first.
    assert set(cold) == {(1, 2)}
    assert set(hot) == {frozenset({0, 1})}
    assert [len(choose("rejection", accepted=n)) for n in (2, 3, 4, 64)] == [1, 1, 2, 2]


def test_rejection_sampling_draws_what_the_best_policy_for_the_rewards_would() -> None:
    """The first accepted of many candidates has density proportional to that of the policy times exp(reward / T)."""
    chance, first = Random(7), Counter[float]()
    for seed in range(3000):
        rewards = [chance.choice([0.0, 1.0]) for _ in range(16)]
        couple = choose("rejection", rewards, seed=seed, temperature=1.0)[0]
        first[rewards[couple[0]]] += 1

    odds = first[1.0] / first[0.0]
    assert odds == pytest.approx(math.e, rel=0.15)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"pairing\.name: .* 'best_vs_worse'; did you mean best_vs_worst\?"):
        get_rule("best_vs_worse", path="pairing")
    with pytest.raises(InvalidArgumentError, match=r"pairing\.params\.margn: threshold has no such parameter.*margin"):
        parse_rule_params("threshold", {"margn": 1}, path="pairing")
    with pytest.raises(InvalidArgumentError, match=r"pairing\.params\.margin: .*greater than 0, got -1"):
        parse_rule_params("threshold", {"margin": -1}, path="pairing")


def test_every_rule_says_where_it_is_from() -> None:
    assert all(rule.source and rule.summary.endswith(".") for rule in RULES.values())
