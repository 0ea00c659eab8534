"""Labels by the reward model."""

import math
from random import Random

import pytest
import torch

from madpo.losses.dpo import dpo_loss
from madpo.pairing.label import LABELS, Labels, labelled_pairs
from madpo.types import ChatOptions, PreferencePair, PromptOnly

PROMPT = PromptOnly("the film was", row=3, options=ChatOptions(tools="[]"), source="sampled")
RESPONSES, REWARDS = ["good", "bad", "good too"], [1.5, -0.5, 1.5]


def label(couple: tuple[int, int], labels: Labels, *, seed: int = 0, temperature: float = 1.0) -> list[PreferencePair]:
    return list(
        labelled_pairs(PROMPT, RESPONSES, REWARDS, couple, labels=labels, temperature=temperature, chance=Random(seed))
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("couple", [(0, 1), (1, 0)])
def test_a_hard_label_chooses_the_higher_reward(couple: tuple[int, int]) -> None:
    (pair,) = label(couple, "hard")

    assert (pair.chosen, pair.rejected, pair.weight) == ("good", "bad", None)
    assert (pair.chosen_reward, pair.rejected_reward, pair.reward_margin) == (1.5, -0.5, 2.0)
    assert (pair.prompt, pair.row, pair.options, pair.source) == ("the film was", 3, PROMPT.options, "sampled")


@pytest.mark.parametrize("labels", LABELS)
def test_equal_rewards_say_nothing(labels: Labels) -> None:
    assert label((0, 2), labels) == []


def test_a_sampled_label_is_wrong_as_often_as_the_reward_model_thinks() -> None:
    for temperature in (1.0, 4.0):
        drawn = [label((0, 1), "sampled", seed=seed, temperature=temperature)[0] for seed in range(4000)]

        right = sum(pair.chosen == "good" for pair in drawn) / len(drawn)
        assert right == pytest.approx(sigmoid(2.0 / temperature), abs=0.025)
        assert all(pair.reward_margin == (2.0 if pair.chosen == "good" else -2.0) for pair in drawn)


def test_soft_labels_are_the_expected_loss_of_a_sampled_one() -> None:
    straight, turned = label((0, 1), "soft", temperature=2.0)

    assert (straight.chosen, turned.chosen) == ("good", "bad")
    assert (straight.weight, turned.weight) == pytest.approx((sigmoid(1.0), sigmoid(-1.0)))
    assert (straight.reward_margin, turned.reward_margin) == (2.0, -2.0)
    ratio = torch.tensor([0.7], dtype=torch.float64)
    loss = straight.weight * dpo_loss(ratio, beta=0.5) + turned.weight * dpo_loss(-ratio, beta=0.5)  # type: ignore[operator]
    expected = sigmoid(1.0) * math.log1p(math.exp(-0.35)) + sigmoid(-1.0) * math.log1p(math.exp(0.35))
    assert loss.item() == pytest.approx(expected)


def test_of_rewards_far_apart_the_pair_without_weight_is_left_out() -> None:
    rewards = [1e5, -1e5]
    pairs = list(labelled_pairs(PROMPT, ["a", "b"], rewards, (0, 1), labels="soft", temperature=0.1, chance=Random(0)))

    assert [pair.weight for pair in pairs] == [1.0]
