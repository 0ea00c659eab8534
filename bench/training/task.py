"""What a training variant is given, whoever's it is: model, pairs, order, batch, optimizer, and when to stop."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from bench.lengths import SHAPES, PairLengths, TokenPair, draw_lengths, fill
from bench.models import SIZES, Size
from bench.turns import arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training run: a step to warm up, then the same batches round after round.

    Every round has the same work to do, so that rounds differ by noise alone.
    """

    size: str | Size
    """By name, or as it is."""
    batch: int
    """Pairs per optimizer step."""
    micro_batch: int
    """Pairs per forward pass where these are counted in pairs."""
    steps: int = 1
    """Per round."""
    rounds: int
    shape: str = "128/128"
    length: int | None = None
    """Of every sequence, half of it the prompt, in the place of drawn ones."""
    vocabulary: int | None = None
    """In the place of the size's."""
    seed: int = 11
    precision: str = "fp32"
    learning_rate: float = 2e-5
    beta: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    threads: int = 1

    @property
    def model(self) -> Size:
        """The model's shape."""
        size = SIZES[self.size] if isinstance(self.size, str) else self.size
        return size if self.vocabulary is None else replace(size, vocabulary=self.vocabulary)

    @property
    def total_steps(self) -> int:
        """With the one to warm up."""
        return 1 + self.rounds * self.steps

    @property
    def row_tokens(self) -> int:
        """Tokens of a micro-batch that is not padded: about `micro_batch` pairs of median length."""
        shape = SHAPES[self.shape]
        return self.micro_batch * 2 * (shape.prompt + shape.response)

    def lengths(self) -> list[PairLengths]:
        """Of the pairs of a round."""
        pairs = self.batch * self.steps
        if self.length is not None:
            half = self.length // 2
            return [PairLengths(self.length - half, half, half)] * pairs
        return draw_lengths(SHAPES[self.shape], pairs, seed=self.seed)

    def pairs(self) -> list[TokenPair]:
        """The pairs of a round, batch by batch."""
        return fill(self.lengths(), self.model.vocabulary, seed=self.seed)

    def batch_rows(self, step: int) -> list[int]:
        """Which pairs a step takes."""
        first = step % self.steps * self.batch
        return list(range(first, first + self.batch))

    def argument(self) -> str:
        """The task as an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls) -> tuple[Self, str]:
        """Task and variant from the command line of a variant's process."""
        task, variant = arguments()
        return cls(**task | {"betas": tuple(task["betas"])}), variant


def sort_batches(pairs: Sequence[TokenPair], batch: int) -> list[TokenPair]:
    """The pairs of every batch by the length of their longer sequence: least padding in the same step."""
    return [
        pair
        for first in range(0, len(pairs), batch)
        for pair in sorted(pairs[first : first + batch], key=lambda pair: len(pair.prompt) + max(map(len, pair[1:])))
    ]


def tokens_digest(batches: Sequence[Sequence[TokenPair]]) -> str:
    """Equal for two runs exactly when every step takes the same pairs, in whatever order within the step."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(json.dumps(sorted(map(list, batch))).encode())
    return digest.hexdigest()[:16]
