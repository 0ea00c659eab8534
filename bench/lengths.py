"""Seeded preference pairs with lengths as they are met: lognormal, prompt and responses by their medians."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

EOS_ID, FIRST_WORD_ID = 2, 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A distribution of lengths in tokens."""

    prompt: int
    """Median."""
    response: int
    """Median, of chosen and rejected alike."""
    prompt_sigma: float = 0.7
    response_sigma: float = 0.5
    shortest: int = 16
    longest_prompt: int = 640
    longest_response: int = 384


SHAPES = {
    "128/128": Shape(128, 128),
    "64/192": Shape(64, 192),
    "384/128": Shape(384, 128, longest_prompt=1536),
    "1024/192": Shape(1024, 192, longest_prompt=3500),
}
"""Prompt and response medians: the one everything is measured at, short prompts, long ones, documents."""


class PairLengths(NamedTuple):
    """Tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def shared(self) -> int:
        """Tokens when the prompt is there once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return self.prompt + max(self.chosen, self.rejected)


class TokenPair(NamedTuple):
    """Token ids of one pair; the responses end with EOS and differ in their first token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def draw_lengths(shape: Shape, pairs: int, *, seed: int) -> list[PairLengths]:
    """Lengths of some pairs."""
    source = random.Random(seed)

    def draw(median: int, sigma: float, longest: int) -> int:
        return int(min(longest, max(shape.shortest, math.exp(source.gauss(math.log(median), sigma)))))

    prompt = (shape.prompt, shape.prompt_sigma, shape.longest_prompt)
    response = (shape.response, shape.response_sigma, shape.longest_response)
    return [PairLengths(draw(*prompt), draw(*response), draw(*response)) for _ in range(pairs)]


def fill(lengths: list[PairLengths], vocabulary: int, *, seed: int) -> list[TokenPair]:
    """Random token ids of the given lengths."""
    return list(_fill(lengths, vocabulary, random.Random(seed + 1)))


def _fill(lengths: list[PairLengths], vocabulary: int, source: random.Random) -> Iterator[TokenPair]:
    def words(count: int) -> list[int]:
        return [source.randrange(FIRST_WORD_ID, vocabulary) for _ in range(count)]

    for prompt, chosen, rejected in lengths:
        pair = TokenPair(words(prompt), [*words(chosen - 1), EOS_ID], [*words(rejected - 1), EOS_ID])
        if pair.chosen[0] == pair.rejected[0]:
            # Else the pair would share a token more than its prompt.
            pair.rejected[0] = FIRST_WORD_ID + (pair.rejected[0] - FIRST_WORD_ID + 1) % (vocabulary - FIRST_WORD_ID)
        yield pair
