"""From generated reviews to labelled preference pairs."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from madpo_examples.toy_reviews.language import is_grammatical, true_reward


@dataclass(frozen=True, slots=True)
class Candidates:
    """Two different whole responses to one prompt, with their true rewards."""

    prompt: str
    responses: tuple[str, str]
    rewards: tuple[float, float]


def candidate_pairs(generations: Iterable[str]) -> list[Candidates]:
    """Pair neighbouring samples of each prompt: 0 with 1, 2 with 3, and so on, in the order of the prompts.

    A pair is left out when a sample was cut off before its end or is not grammatical, since training would teach that,
    or when both samples are the same text.

    Args:
        generations: Lines of an evaluation's `generations.jsonl`, with an even number of samples a prompt.
    """
    samples = sorted(map(json.loads, generations), key=itemgetter("prompt_index", "sample"))
    pairs = []
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        prompt, responses = first["prompt"], (first["response"], second["response"])
        reviews = (f"{prompt} {responses[0]}", f"{prompt} {responses[1]}")
        is_whole = first["finished"] and second["finished"] and all(map(is_grammatical, reviews))
        if is_whole and responses[0] != responses[1]:
            pairs.append(Candidates(prompt, responses, (true_reward(reviews[0]), true_reward(reviews[1]))))
    return pairs


def noisy_label(candidates: Candidates, rng: random.Random) -> dict[str, str]:
    """A preference row with a Bradley-Terry label: the first is chosen with probability sigmoid(its reward's lead).

    The same as adding Gumbel noise of scale 1 to each reward and choosing the higher sum, as arXiv:2510.05342 does.
    """
    first, second = candidates.rewards
    return _row(candidates, first_chosen=rng.random() < 1.0 / (1.0 + math.exp(second - first)))


def noiseless_label(candidates: Candidates) -> dict[str, str]:
    """A preference row with the higher true reward chosen; the rewards must differ."""
    first, second = candidates.rewards
    assert first != second, "equal rewards have no noiseless label"
    return _row(candidates, first_chosen=first > second)


def _row(candidates: Candidates, *, first_chosen: bool) -> dict[str, str]:
    chosen, rejected = candidates.responses if first_chosen else candidates.responses[::-1]
    return {"prompt": candidates.prompt, "chosen": chosen, "rejected": rejected}
