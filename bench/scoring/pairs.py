"""Seeded pairs to score: as texts, and as the reward service takes them."""

from bench import models
from bench.lengths import PairLengths, Shape, draw_lengths, fill
from madpo.types import PreferencePair


def pair_texts(lengths: list[PairLengths], size: str, *, seed: int) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of pairs of these lengths, in words of a model's vocabulary."""
    pairs = fill(lengths, models.SIZES[size].vocabulary, seed=seed)
    return [
        (models.text(prompt) + " ", models.text(chosen), models.text(rejected)) for prompt, chosen, rejected in pairs
    ]


def make_pairs(count: int, *, seed: int = 0, prompt: int = 128, response: int = 128) -> list[PreferencePair]:
    """Seeded preference pairs around these medians, for any of the models with a vocabulary of 2048 or more."""
    shape = Shape(prompt, response, longest_prompt=5 * prompt, longest_response=3 * response)
    return [PreferencePair(*texts) for texts in pair_texts(draw_lengths(shape, count, seed=seed), "body", seed=seed)]
