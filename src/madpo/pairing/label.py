"""Labels of compared responses by the reward model, and the pairs that follow."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, get_args

from madpo.pairing.rule import Couple
from madpo.types import Content, PreferencePair, PromptOnly

Labels = Literal["hard", "sampled", "soft"]
LABELS: tuple[Labels, ...] = get_args(Labels)


def labelled_pairs(
    prompt: PromptOnly,
    responses: Sequence[Content],
    rewards: Sequence[float],
    couple: Couple,
    *,
    labels: Labels,
    temperature: float,
    chance: Random,
) -> Iterator[PreferencePair]:
    """The pair of a couple, or the two weighted pairs; none where both rewards are equal.

    With p = sigmoid(|reward difference| / temperature), which Bradley and Terry take for the probability that people
    prefer the response with the higher reward:
        hard     that response is chosen
        sampled  it is chosen with probability p, as a person would
        soft     it is chosen in one pair of weight p and rejected in another of weight 1 - p: the sum of their losses
                 is the expected loss of a sampled label, whatever the method

    Args:
        prompt: What was answered; the pairs have its row number and options.
        responses: To it.
        rewards: Of them, in reward-model logits.
        couple: Places of the two.
        labels: How labels follow from rewards.
        temperature: Divides reward differences, so that p is a probability; the pairs' rewards stay as they are.
        chance: For sampled labels.
    """
    better, worse = sorted(couple, key=lambda place: rewards[place], reverse=True)
    if rewards[better] == rewards[worse]:
        return
    odds_against = math.exp((rewards[worse] - rewards[better]) / temperature)
    p, q = 1 / (1 + odds_against), odds_against / (1 + odds_against)

    def pair(chosen: int, rejected: int, weight: float | None = None) -> PreferencePair:
        return PreferencePair(
            prompt.prompt,
            responses[chosen],
            responses[rejected],
            reward_margin=rewards[chosen] - rewards[rejected],
            chosen_reward=rewards[chosen],
            rejected_reward=rewards[rejected],
            row=prompt.row,
            weight=weight,
            options=prompt.options,
            source=prompt.source,
        )

    match labels:
        case "hard":
            yield pair(better, worse)
        case "sampled":
            yield pair(better, worse) if chance.random() < p else pair(worse, better)
        case "soft":
            yield pair(better, worse, p)
            if q > 0:
                yield pair(worse, better, q)
