"""What a scoring variant is given, whoever's it is: a reward model, pairs, and how many may be on their way at once."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from bench import models
from bench.lengths import SHAPES, PairLengths, TokenPair, draw_lengths, fill
from bench.scoring.pairs import pair_texts
from bench.turns import arguments

PADDED = "padded batches of 32 as they arrive"
PACKED = "packed rows of 8 pairs (not bit-stable)"
"""Ways of `bench.scoring.engine` by the names they have in results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """Pairs to be scored once a round, none of them seen before by whoever keeps scores."""

    size: str
    pairs: int
    rounds: int
    in_flight: int = 64
    """Pairs that were asked for and not answered."""
    shape: str = "128/128"
    seed: int = 5
    threads: int = 1

    def texts(self, turn: int) -> list[tuple[str, str, str]]:
        """Prompt, chosen and rejected of a round; other words in every round, the same lengths."""
        return pair_texts(self._lengths(), self.size, seed=self._seed(turn))

    def token_ids(self, turn: int) -> list[TokenPair]:
        """The tokens of these texts."""
        return fill(self._lengths(), models.SIZES[self.size].vocabulary, seed=self._seed(turn))

    def _lengths(self) -> list[PairLengths]:
        return draw_lengths(SHAPES[self.shape], self.pairs, seed=self.seed)

    def _seed(self, turn: int) -> int:
        return self.seed + 1000 * (turn + 1)

    def argument(self) -> str:
        """The task as an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls) -> tuple[Self, str]:
        """Task and variant from the command line of a variant's process."""
        task, variant = arguments()
        return cls(**task), variant
