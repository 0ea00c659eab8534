"""Order of training rows: a pure function of seed, epoch and step, so a step number alone says what comes next."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which rows each optimizer step takes.

    Epochs follow one another without a gap: a batch may straddle two of them, and only the very last batch may be
    short. No row is dropped.
    """

    rows: int
    batch_size: int
    """Rows per optimizer step."""
    seed: int
    total_rows: int
    """Rows over all epochs."""

    @classmethod
    def plan(cls, *, rows: int, batch_size: int, seed: int, epochs: float, max_steps: int | None) -> "Schedule":
        """The schedule of a job; `max_steps` overrides `epochs`."""
        total = max_steps * batch_size if max_steps is not None else max(1, math.ceil(rows * epochs))
        return cls(rows=rows, batch_size=batch_size, seed=seed, total_rows=total)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole job."""
        return math.ceil(self.total_rows / self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Row indices of a step, counted from 0."""
        first = step * self.batch_size
        last = min(first + self.batch_size, self.total_rows)
        return [int(row) for row in self._rows(first, last)]

    @property
    def asked(self) -> npt.NDArray[np.int64]:
        """The rows that some step takes, in the order of the dataset."""
        if self.total_rows >= self.rows:
            return np.arange(self.rows)
        return np.sort(self._rows(0, self.total_rows)).astype(np.int64)

    def epoch(self, step: int, place: int = 0) -> int:
        """Epoch of the row at a place of the step's batch, from 0."""
        return (step * self.batch_size + place) // self.rows

    def passes(self, steps: int) -> float:
        """Passes over the data that so many steps have made, as trainers of transformers count epochs."""
        return round(steps * self.batch_size / self.rows, 4)

    def _rows(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """Rows at positions of all epochs in a row."""
        parts = []
        while first < last:
            epoch, offset = divmod(first, self.rows)
            parts.append(_permutation(self.rows, self.seed, epoch)[offset : offset + last - first])
            first += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int32)


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows).astype(np.int32)
